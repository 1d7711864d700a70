"""Where Dagster keeps its data, however it is started: `make dev` and `visdiv demo` use it.

    python -m visdiv_assets.cli.home      # makes it for the project in this folder; prints its path

Here: the folder that $DAGSTER_HOME names, and what has to be in it. Not here: `dagster.yaml`.
"""

from pathlib import Path

# Databases of versions whose `dagster.yaml` named folders are already in it.
HOME = Path(".visdiv/dagster/storage")


def dagster_home(project: Path) -> Path:
    """The folder for a project's Dagster data, which leads to its `dagster.yaml`.

    Args:
        project: the project's folder.

    Returns:
        an absolute path, so that commands in other folders find the same data.

    Raises:
        OSError: it cannot be made.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dagster_home(Path(folder)).relative_to(Path(folder).resolve())
        PosixPath('.visdiv/dagster/storage')
    """
    project = project.resolve()
    home = project / HOME
    home.mkdir(parents=True, exist_ok=True)
    _link(home / "dagster.yaml", project / "dagster.yaml")
    # Earlier versions kept what runs print elsewhere; Dagster looks for it here.
    logs = home.with_name("compute_logs")
    if logs.is_dir():
        _link(home / "storage", logs)
    return home


def _link(link: Path, target: Path) -> None:
    """Make a link to a target; one that is there may be of before the project was moved."""
    if link.is_symlink() and link.readlink() != target:
        link.unlink(missing_ok=True)
    if not link.exists() and not link.is_symlink():
        link.symlink_to(target)


if __name__ == "__main__":
    print(dagster_home(Path.cwd()))
