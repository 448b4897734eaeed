"""OpenCLOC inside other people's programs, one host a module.

A host imports its module, or the user does: nothing here is imported by the rest of the package.
"""
