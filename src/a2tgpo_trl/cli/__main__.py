"""`python -m a2tgpo_trl.cli`, which `accelerate launch -m` takes."""

from .main import main

if __name__ == "__main__":
    raise SystemExit(main())
