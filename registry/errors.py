"""The root of every error that mreg raises on purpose: what is wrong, then what to do, and an exit code."""

from __future__ import annotations


class MregError(Exception):
    """Something the user can act on.

    `message` says what is wrong in the user's words, `fix` what to do about it. Subclasses live beside what raises
    them and set `exit_code`; docs/exit-codes.md lists them all.
    """

    exit_code = 2

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}: {self.fix}" if self.fix else self.message


class Refused(MregError):
    """The request is well formed, but doing it would produce a wrong or meaningless result."""

    exit_code = 11
