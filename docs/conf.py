import importlib
import os
import shutil
from datetime import date
from importlib.metadata import version as installed_version
from pathlib import Path

project = "scdisentangle"
author = "scdisentangle developers"
copyright = f"{date.today():%Y}, {author}"
version = release = installed_version("scdisentangle")

# Sphinx reads nothing outside its folder; the notebooks live beside it, where people look for them.
here = Path(__file__).parent
shutil.copytree(here.parent / "tutorials", here / "tutorials", dirs_exist_ok=True)

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
# Links into other projects need their inventories, and so a network: on the documentation host.
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")

intersphinx_mapping = {
    "anndata": ("https://anndata.readthedocs.io/en/stable", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "pandas": ("https://pandas.pydata.org/docs", None),
    "python": ("https://docs.python.org/3", None),
    "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
    "scvi": ("https://docs.scvi-tools.org/en/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}

# reStructuredText first: it is what autosummary writes its pages in.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "**.ipynb_checkpoints", "user_guide/*_table.md"]
templates_path = ["_templates"]
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# A link to a name of ours must lead somewhere; names of others need their inventories.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!scdisentangle\b).*")]


def methods_of_mixins(module: str, name: str) -> list[str]:
    """Public methods that a class of ours has from another class of ours."""
    cls = getattr(importlib.import_module(module), name)
    of_others = [base for base in cls.__mro__[1:] if base.__module__.startswith("scdisentangle")]
    found = dict.fromkeys(member for base in of_others for member in vars(base))
    return [
        member
        for member in found
        if callable(getattr(cls, member)) and member not in vars(cls) and member[0] != "_"
    ]


autosummary_generate = True
autosummary_context = {"methods_of_mixins": methods_of_mixins}
suppress_warnings = ["config.cache"]  # of the function in it
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_title = "scdisentangle"
html_theme_options = {"show_navbar_depth": 2, "use_fullscreen_button": False}
