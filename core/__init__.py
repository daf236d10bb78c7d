"""Code that two or more of the packages share; imports none of them."""

__version__ = "0.1.0"
