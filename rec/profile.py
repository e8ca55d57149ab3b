"""What the body columns of a profile can be: one place for the bounds that files and requests are held to."""

HEIGHT_CM = (50.0, 250.0)
WEIGHT_KG = (20.0, 300.0)
FIRST_BIRTH_YEAR = 1900


def ranges(year: int) -> dict[str, tuple[float, float]]:
    """Column of the users contract → lowest and highest plausible value; `year` is the present one."""
    return {
        "height_cm": HEIGHT_CM,
        "weight_kg": WEIGHT_KG,
        "birth_year": (float(FIRST_BIRTH_YEAR), float(year)),
    }
