"""Image formats: declared records, writers, readers, probers.

The bottom of storaged: standard library only (with zstandard and cryptography where a format needs
them). It never opens a second file, never starts a process, never logs.
"""
