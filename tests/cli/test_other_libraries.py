"""Background errors of other libraries: known ones are hidden, all others are shown."""

from __future__ import annotations

import asyncio
import sys
import threading
import types

import pytest

from jaxvit.cli.other_libraries import quieten_libraries


@pytest.fixture
def quiet(monkeypatch):
    """Installs the filter as a real process does, with Python's printing hook."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.delenv("JAXVIT_VERBOSE", raising=False)
    quieten_libraries()
    quieten_libraries()  # once for each verb of a process


def give_up_a_read():
    """Makes TensorStore finish a read after its event loop was closed."""
    import tensorstore

    promise, future = tensorstore.Promise.new()

    async def read():
        await future

    loop = asyncio.new_event_loop()
    task = loop.create_task(read())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    promise.set_result(1)
    return task


def throw_away(module):
    """Drops a coroutine of that module, which raises when it is closed."""

    async def read():
        try:
            await forever()
        except BaseException as error:
            raise Exception("error while reading") from error

    @types.coroutine
    def forever():
        yield

    own = types.FunctionType(read.__code__, {"__name__": module}, closure=read.__closure__)()
    own.send(None)
    del own


def test_known_errors_of_given_up_reads_are_left_out(quiet, capsys):
    give_up_a_read()
    throw_away("orbax.checkpoint._src.serialization.serialization")
    assert capsys.readouterr().err == ""


def test_verbose_shows_them(monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setenv("JAXVIT_VERBOSE", "1")
    quieten_libraries()
    give_up_a_read()
    assert "Event loop is closed" in capsys.readouterr().err


def test_an_error_in_a_thread_is_shown(quiet, capsys):
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_same_errors_from_elsewhere_are_shown(quiet, capsys):
    throw_away("models_of_mine")
    assert "error while reading" in capsys.readouterr().err

    class Closes:
        def __del__(self):
            loop = asyncio.new_event_loop()
            loop.close()
            loop.call_soon_threadsafe(print)

    Closes()
    assert "Event loop is closed" in capsys.readouterr().err
