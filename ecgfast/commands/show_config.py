"""`ecgfast show-config`: how this installation was built."""


def show_config() -> None:
    """Print how this installation was built and what it runs on."""
    from ecgfast import _build

    _build.show_config()
