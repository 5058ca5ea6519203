"""An `os` module whose disk fails when it is told to."""

import errno
import os

CALLS = ("open", "write", "fsync", "mkdir", "rename", "replace")


class FaultyOs:
    """The `os` module, whose n-th call that touches the disk fails; counts them all."""

    def __init__(self, fail_at=None, code=errno.ENOSPC, short_writes=False):
        self.fail_at, self.code, self.short_writes, self.calls = fail_at, code, short_writes, []

    def __getattr__(self, name):
        function = getattr(os, name)
        if name not in CALLS:
            return function

        def call(*args, **kwargs):
            self.calls.append(name)
            if len(self.calls) - 1 == self.fail_at:
                self.fail()
            if name == "write" and self.short_writes:
                return os.write(args[0], args[1][:3])
            return function(*args, **kwargs)

        return call

    def fail(self):
        raise OSError(self.code, os.strerror(self.code))
