"""How many files this process may have open: each camera takes about eight descriptors."""

import contextlib
import resource

import structlog

OF_A_CAMERA = 8  # pipes, bell, pidfd, epoll, the session's lock, and a file for a moment
OF_THE_REST = 64
# Some programs close every descriptor that they could have, one by one: our children inherit the limit.
MOST_DESCRIPTORS = 65536

log = structlog.get_logger()


def allow_open_files(cameras: int) -> int:
    """Raise our limit as far as the system lets us, and say so when that is too little for so many cameras.

    Returns how many cameras can run: without descriptors the first ones could not even close their segments.

    Nothing here or in what we start uses select(), which knows 1024 descriptors: that was the reason to
    begin with a low limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS: the kernel's own limit is lower than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = cameras * OF_A_CAMERA + OF_THE_REST
    if allowed == resource.RLIM_INFINITY:
        allowed = MOST_DESCRIPTORS
    most = max(1, (allowed - OF_THE_REST) // OF_A_CAMERA)
    if allowed < needed:
        log.error(
            "too_few_open_files",
            allowed=allowed,
            needed=needed,
            then=f"{most} of {cameras} cameras run, the others wait for one to end",
            advice="raise the hard limit (ulimit -Hn, or LimitNOFILE= of a unit), then start again",
        )
    return most
