"""What ends a command, and with which exit code."""

import signal

import pytest

from pc_ewa.errors import ConfigError, Stopped, exit_on_error


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ConfigError("dim=3;\n choose  4"), 2, "error: dim=3; choose 4\n"),
        (ConfigError("\x1b[31mred\x00 \u202e"), 2, None),
        (Stopped(signal.SIGTERM), 143, ""),
        (Stopped(signal.SIGUSR1), 128 + signal.SIGUSR1, ""),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
    ids=["error", "control characters", "SIGTERM", "SIGUSR1", "Ctrl-C"],
)
def test_what_ends_a_command_is_at_most_one_line(
    raised: BaseException, code: int, said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    @exit_on_error
    def main() -> None:
        raise raised

    assert main() == code
    err = capsys.readouterr().err
    assert err.count("\n") <= 1
    assert all(character.isprintable() for character in err.rstrip("\n"))
    assert said in (None, err)


def test_a_bug_keeps_its_traceback() -> None:
    @exit_on_error
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()
