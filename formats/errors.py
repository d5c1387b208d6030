"""What goes wrong with an image. Without libvirt's numbers: this layer knows nothing above it."""

from __future__ import annotations


class FormatError(Exception):
    """An image, or a request for one, that the format does not allow.

    The text names the field and the offending value.
    """


class UnsupportedFormat(FormatError):
    """Legal, but this code does not do it: the text names the feature."""


class CorruptImage(FormatError):
    """The image contradicts itself or its file's size."""


class WrongPassphrase(FormatError):
    """No key slot of an encrypted image opens with the passphrase."""
