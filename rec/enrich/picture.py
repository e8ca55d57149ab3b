"""An image of any origin as a small JPEG without metadata, or the reason why it is none.

The header is read before anything is decoded, and by four decoders only: a file of a few kilobytes can claim to be
gigabytes of pixels. What is sent is drawn anew on an empty sheet, so that neither metadata nor comments, which could
address the model, nor anything hidden behind the image goes out. Decoding takes some four bytes a pixel of the source.
"""

import io
import struct
import zlib

from PIL import Image
from PIL.ExifTags import Base

from rec.enrich.places import Lost

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_QUALITY = 85
_BROKEN = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, OverflowError, struct.error,
    zlib.error,
)  # fmt: skip
"""What Pillow raises on damaged files, EXIF and all; it has no error of its own for them."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation of EXIF (tag 274) → what puts the image upright."""


def jpeg(data: bytes, max_edge: int, max_pixels: int) -> bytes:
    """The first frame of `data`, upright, on white, at most `max_edge` pixels long. Raises Lost."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Lost("it has more than enrich.images.max_pixels")
            turn = _TURNS.get(image.getexif().get(Base.Orientation, 1))
            image.draft("RGB", (max_edge, max_edge))  # JPEG: decoded at a fraction of its size
            image.thumbnail((max_edge, max_edge))  # before all else, which copies
            sheet = _on_white(image)
            out = io.BytesIO()
            (sheet if turn is None else sheet.transpose(turn)).save(out, "JPEG", quality=_QUALITY)
    except Image.DecompressionBombError:
        raise Lost("it has more than enrich.images.max_pixels") from None
    except _BROKEN:
        raise Lost("it is no JPEG, PNG, WebP or GIF image that can be decoded") from None
    return out.getvalue()


def _on_white(image: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", image.size, "white")
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        sheet.paste(whole, mask=whole.getchannel("A"))
    else:
        sheet.paste(image.convert("RGB"))
    return sheet
