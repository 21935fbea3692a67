"""How the codes are called, and coloured, in pictures."""

TITLES = {
    "z_bio": r"$z_\mathrm{bio}$",
    "z_nio": r"$z_\mathrm{nio}$",
    "unintegrated": "before",
}

COLORS = {"z_bio": "#0072B2", "z_nio": "#E69F00", "unintegrated": "#9A9A9A"}


def plain(name: object) -> str:
    """A name as text; between two ``$``, matplotlib would take it for mathematics."""
    return str(name).replace("$", r"\$")
