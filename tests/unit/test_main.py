"""What the process list shows of a command line."""

import pytest

from capture.__main__ import MASK, masked


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["up", "--token", "T"], ["up", "--token", MASK]),
        (["up", "--token=T"], ["up", f"--token={MASK}"]),
        (["up", "-t", "T"], ["up", "-t", MASK]),
        (["up", "-tT"], ["up", f"-t{MASK}"]),
        (["up", "-vt", "T"], ["up", "-vt", MASK]),
        (["up", "-vtT"], ["up", f"-vt{MASK}"]),
        (["up", "-s", "rtsp://u:p@h/x"], ["up", "-s", MASK]),
        (["up", "-vsrtsp://u:p@h/x"], ["up", f"-vs{MASK}"]),
        (["up", "--source", "rtsp://h/x?password=p"], ["up", "--source", MASK]),
        (["up", "--broker", "redis://:p@h/0"], ["up", "--broker", MASK]),
        (["up", "--source", "clip.mp4", "-v"], ["up", "--source", "clip.mp4", "-v"]),
        (["up", "-s", "test:", "--spool", "x"], ["up", "-s", "test:", "--spool", "x"]),
        (["sink", "-p", "0"], ["sink", "-p", "0"]),
        (["discover", "--user", "admin"], ["discover", "--user", MASK]),
        (["discover", "--password=x"], ["discover", f"--password={MASK}"]),
        (["discover", "--password-file", "x"], ["discover", "--password-file", "x"]),
        (["up", "--token"], ["up", "--token"]),
        ([], []),
    ],
)
def test_secrets_given_as_flags_are_masked_and_nothing_else_is(given, shown):
    assert masked(given) == shown
