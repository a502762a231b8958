"""`shardtune init DIR`: a folder to begin in, with settings to fill in, ds_configs and job scripts."""

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data_tools.errors import RunError

SETTINGS = Path(__file__).parent / "starting"
PATTERNS = {
    "ds_configs": ("*.json", "README.md"),
    "slurm": ("*.sbatch", "sites/*.sh"),
}


def shipped_folder(name: str) -> Path:
    """Return a folder that travels with the package: that of the source tree, or where the installed package has put
    it. Raises RunError."""
    folders = (Path(__file__).parents[1] / name, Path(sysconfig.get_path("data")) / "share/shardtune" / name)
    for folder in folders:
        if folder.is_dir():
            return folder
    raise RunError(f"{name}: not found in {' or '.join(map(str, folders))}; install shardtune again")


def lay_down(folder: Path) -> list[Path]:
    """Write the starting files into a folder; return them, relative to it.

    Raises RunError if any of them is there already; then nothing is written.
    """
    files = dict(_starting_files())
    there = [str(name) for name in files if (folder / name).exists()]
    if there:
        raise RunError(f"{folder}: has {', '.join(there)} already; name another folder, or move them away")
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    return list(files)


def _starting_files() -> Iterator[tuple[Path, Path]]:
    """Yield where each file goes, and where it comes from."""
    for path in sorted(SETTINGS.glob("*.yaml")):
        yield Path(path.name), path
    for name, patterns in PATTERNS.items():
        origin = shipped_folder(name)
        for pattern in patterns:
            for path in sorted(origin.glob(pattern)):
                yield Path(name) / path.relative_to(origin), path
