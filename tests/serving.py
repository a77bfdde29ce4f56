"""A retriever's app on a real port."""

import threading
from contextlib import contextmanager

import uvicorn

from a2tgpo_trl.search.server import bind, configure


@contextmanager
def serving(app, limits=None):
    """Serve as `a2tgpo retriever` does, on a free port of this machine, which is what is yielded."""
    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(configure(app, limits, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            while not server.started:
                thread.join(0.01)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)
