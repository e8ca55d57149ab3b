"""An image of any origin as a small JPEG without metadata, or the reason why it is none.

The header is read before anything is decoded, and by four decoders only: a file of a few kilobytes can claim to be
gigabytes of pixels. What is sent is drawn anew, so neither metadata nor anything hidden behind the image goes out.
"""

import io
import struct
import zlib

from PIL import Image, ImageOps

from rec.enrich.places import Lost

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_QUALITY = 85
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files; it has no error of its own for them."""


def jpeg(data: bytes, max_edge: int, max_pixels: int) -> bytes:
    """The first frame of `data`, upright, on white, at most `max_edge` pixels long. Raises Lost."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Lost("it has more than enrich.images.max_pixels")
            image.draft("RGB", (max_edge, max_edge))  # JPEG: decoded at a fraction of its size
            drawn = _opaque(ImageOps.exif_transpose(image))
            drawn.thumbnail((max_edge, max_edge))
    except Image.DecompressionBombError:
        raise Lost("it has more than enrich.images.max_pixels") from None
    except _BROKEN:
        raise Lost("it is no JPEG, PNG, WebP or GIF image that can be decoded") from None
    out = io.BytesIO()
    drawn.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    whole = image.convert("RGBA")
    paper = Image.new("RGB", whole.size, "white")
    paper.paste(whole, mask=whole.getchannel("A"))
    return paper
