"""``python -m stlm_kd``, the same as ``stlm-kd``."""

from stlm_kd.cli.main import app

if __name__ == "__main__":
    app()
