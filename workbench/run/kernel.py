"""The kernel that runs a notebook without a browser."""

from __future__ import annotations

import os
import signal
import sys


def manager() -> type:
    """A kernel manager that starts ipykernel in this interpreter, looks up no installed kernel, and can end what it started."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        started: list = []

        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            self.started.append(self)

        @classmethod
        def end(cls) -> None:
            """The kernel and the processes that it started, which are a group of their own."""
            for manager in cls.started:
                if (group := getattr(manager.provisioner, "pgid", None)) and manager.has_kernel:
                    os.killpg(group, signal.SIGKILL)

        @property
        def kernel_spec(self):
            return KernelSpec(
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                display_name="Python 3",
                language="python",
                metadata={"debugger": False},
            )

    return ThisInterpreter
