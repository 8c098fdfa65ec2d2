"""Settings of the documentation's site: `make docs` builds it in docs/_build."""

import abcsearch

project = "abcsearch"
version = release = abcsearch.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"{project} {version}"
# The source is the whole repository, so that links from page to page are the same on the site and in a clone.
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**",
    "experiments/**/README.md",
]
exclude_patterns = ["docs/_build"]
myst_heading_anchors = 3  # as GitHub makes them, so that a page's links work in both
default_role = "code"  # docstrings write `names` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
napoleon_use_ivar = True  # attributes are described once, in the docstring of their class
