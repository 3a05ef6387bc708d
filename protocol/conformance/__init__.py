"""Holds a server or a client of the framed protocol to the vectors. Standard library alone, Python 3.11 or later.

README.md, one folder up, says under "Conformance" what each side has to do for it.
"""
