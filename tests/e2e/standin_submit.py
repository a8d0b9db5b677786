"""`solon` that submits stand-ins: `python -m tests.e2e.standin_submit submit RUN.toml ...`"""

from __future__ import annotations

import cluster.submission.request
from solon.cli.main import main

if __name__ == "__main__":
    cluster.submission.request.MODULE = "tests.e2e.standin_solon"
    main()
