"""Saving that leaves no half of a model, and loading that runs no code of the file."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from anndata import AnnData
from lightning.pytorch import LightningDataModule
from scvi.data import AnnDataManager
from scvi.data._download import _download
from scvi.model.base._constants import SAVE_KEYS
from torch.serialization import get_unsafe_globals_in_checkpoint

from ._aside import aside, flush
from ._data_modules import as_of_anndata, is_of_data_module
from ._earlier_formats import FILE_FORMAT, format_of, upgraded
from ._errors import InputError, name_some, warn_user
from ._validation import check_is_anndata

_NEEDED = {
    "builtins": ("bytes", "dict", "list", "set", "slice", "tuple"),
    "collections": ("OrderedDict", "defaultdict"),
    "datetime": ("date", "datetime", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "pandas": ("DataFrame", "Index", "Interval", "Period", "RangeIndex", "StringDtype"),
    "pandas._libs.interval": ("Interval",),
    "pandas._libs.internals": ("_unpickle_block",),
    "pandas._libs.tslibs.offsets": ("Day", "Hour", "MonthEnd", "QuarterEnd", "Week", "YearEnd"),
    "pandas._libs.tslibs.period": ("Period",),
    "pandas._libs.tslibs.timestamps": ("_unpickle_timestamp",),
    "pandas.arrays": ("ArrowStringArray", "StringArray"),
    "pandas.core.arrays.string_": ("StringDtype",),
    "pandas.core.frame": ("DataFrame",),
    "pandas.core.indexes.base": ("Index", "_new_Index"),
    "pandas.core.indexes.range": ("RangeIndex",),
    "pandas.core.internals.managers": ("BlockManager",),
    "torch.nn.modules.activation": ("ReLU", "Sigmoid", "Softplus"),
    "pyarrow.lib": ("_restore_array", "py_buffer", "type_for_alias"),
}
"""What a file is of besides tensors: arrays, categories, the history's tables, activations."""

OF_THE_FORMAT = {"pickle_module", "pickle_protocol", "_use_new_zipfile_serialization"}
"""Options of :func:`torch.save` that are always the same."""


class SavingMixin:
    """``save`` and ``load`` of scvi-tools, made safe against accidents and strangers' files."""

    file_format_ = FILE_FORMAT

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **kwargs,
    ) -> None:
        """Save the model to a folder; each file appears there when it is complete.

        Parameters
        ----------
        dir_path
            Folder to write, made if it does not exist.
        prefix
            Put before the names of the files, to keep several models in one folder.
        overwrite
            Whether to replace files of an earlier save in a folder that exists.
        save_anndata
            Whether to save the data too.
        **kwargs
            Further arguments of scvi-tools' ``save``; ``datamodule``, for a model of one.

        Raises
        ------
        InputError
            If the folder exists and ``overwrite`` is off, or is a symbolic link; or if the model
            was made without data or registry, holds what would not be loaded, or is of a data
            module that is not passed.
        OSError
            If it cannot be written, as on a full disk. What was there before is untouched.
        """
        if self._module_init_on_train:
            raise InputError(
                "A model that was made without data or registry does not know what its data are, "
                "and could not be loaded. Make it with registry=datamodule.registry to save it."
            )
        if save_anndata and not hasattr(self.adata, "write"):
            raise InputError(
                "save_anndata=True saves an AnnData or a MuData, and the model's data are "
                f"{'not there' if self.adata is None else type(self.adata).__name__}. Leave it out."
            )
        if fixed := OF_THE_FORMAT & (kwargs.get("save_kwargs") or {}).keys():
            raise InputError(
                f"save_kwargs has {name_some(sorted(fixed))}, with which a file could not be "
                "checked when it is loaded. Leave it out."
            )
        if is_of_data_module(self.registry) and kwargs.get("datamodule") is None:
            raise InputError(
                "A model of a data module is saved with it: model.save(folder, datamodule=...)."
            )
        folder = Path(dir_path).absolute()
        check_no_link(folder)
        if folder.exists() and not overwrite:
            raise InputError(
                f"{folder} already exists. Choose another folder, or pass overwrite=True."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = aside(folder)
        on_disk = getattr(self.adata, "file", None)
        source = None if on_disk is None else on_disk.filename
        try:
            _save(super().save, partial, prefix=prefix, save_anndata=save_anndata, **kwargs)
            flush(partial)
            _put_in_place(partial, folder, overwrite)
        except RuntimeError as error:
            raise OSError(f"{folder} could not be written: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if source is not None:  # anndata points at what it wrote
                on_disk.filename = source

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        backup_url: str | None = None,
        **kwargs,
    ):
        """Load a model that was saved. A file that could run code is refused, not loaded.

        Parameters
        ----------
        dir_path
            Folder of the model.
        adata
            Data for the model; ``None`` takes those that were saved with it, ``False`` none. A
            model of a data module that is given an AnnData takes AnnDatas from then on.
        accelerator, device
            Where to load the model to.
        prefix
            As it was saved with.
        backup_url
            Where to fetch the file from if the folder lacks it.
        **kwargs
            Further arguments of scvi-tools' ``load``; ``datamodule`` is that of a model of one.

        Returns
        -------
        The model, ready for use.

        Raises
        ------
        InputError
            If there is no model in the folder, the file is damaged, holds code, is of another class
            or of a newer version of this package; or if the data do not suit the model.
        """
        if adata is not None and not isinstance(adata, bool):
            check_is_anndata(adata)
        file_name = f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}"
        _download(backup_url, str(dir_path), file_name)
        path = Path(dir_path) / file_name
        names = [cls.__name__, *(kwargs.get("allowed_classes_names_list") or [])]
        content = check_model_file(path, *names)
        datamodule = kwargs.pop("datamodule", None)  # of which scvi-tools would build another model
        read = content if format_of(content) == FILE_FORMAT else upgraded(content)
        if isinstance(adata, AnnData):
            read = _of_anndata(read)
        try:
            with _folder_of(path, content, read) as folder:
                model = super().load(
                    str(folder),
                    adata,
                    accelerator=accelerator,
                    device=device,
                    prefix=prefix,
                    **kwargs,
                )
        except (RuntimeError, OSError) as error:
            raise InputError(f"The model in {dir_path} cannot be loaded: {error}") from error
        if datamodule is not None:
            model._datamodule = datamodule
        model.module.on_load(model)  # anew, since embeddings are other parameters once loaded
        if model.is_trained_ and not getattr(model, "settled_", True):
            model._settle_as_loaded(datamodule)
        return model

    def _settle_as_loaded(self, datamodule: LightningDataModule | None) -> None:
        """Align a model that a callback saved before training had come to its end."""
        if self.adata is not None or datamodule is not None:
            self.align(datamodule, progress_bar=False)
            return
        warn_user(
            "The model was saved before its training had ended, and its codes are not aligned. "
            "Load it with its data, or call align() once it has them."
        )

    @classmethod
    def load_registry(cls, dir_path: str | Path, prefix: str | None = None) -> dict:
        """The registry of a saved model, under the same checks as :meth:`load`.

        Parameters
        ----------
        dir_path, prefix
            As for :meth:`load`.
        """
        check_model_file(Path(dir_path) / f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}", cls.__name__)
        return super().load_registry(str(dir_path), prefix)

    @classmethod
    def view_setup_args(cls, dir_path: str | Path, prefix: str | None = None) -> None:
        """Print the arguments of ``setup_anndata`` of a saved model, as :meth:`load_registry`.

        Parameters
        ----------
        dir_path, prefix
            As for :meth:`load`.
        """
        AnnDataManager.view_setup_method_args(cls.load_registry(dir_path, prefix))


def check_no_link(folder: Path) -> None:
    """Raise :class:`InputError` if a folder to write is a symbolic link."""
    if folder.is_symlink():
        raise InputError(
            f"{folder} is a symbolic link, and is not followed: give the folder that is meant, "
            f"{folder.resolve()}, or another."
        )


def check_model_file(path: Path, *class_names: str) -> dict:
    """Check a model file without running what it may hold.

    Returns
    -------
    Its content.

    Raises
    ------
    InputError
        If it is missing or damaged, asks for what no model needs, is of another class, or newer.
    """
    if not path.is_file():
        others = sorted(file.name for file in path.parent.glob(f"*{SAVE_KEYS.MODEL_FNAME}"))
        way_out = "Name the folder that save() wrote."
        if others:
            prefixes = [name.removesuffix(SAVE_KEYS.MODEL_FNAME) for name in others]
            way_out = (
                f"It was saved with a prefix: load it with prefix=, one of {name_some(prefixes)}. "
                "To map a query, pass the loaded model."
            )
        raise InputError(f"There is no model file {path}. {way_out}")
    try:
        strange = _strange(path)
    except (ValueError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path} is not a model file, or is cut short or damaged: {error}. Save it again, or "
            "take it again from where it came."
        ) from error
    if strange:
        raise InputError(
            f"{path} is not loaded: it asks for {name_some(strange)}, which no model needs and "
            "which may run code of whoever wrote the file."
        )
    content = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    attributes = content.get(SAVE_KEYS.ATTR_DICT_KEY) if isinstance(content, dict) else None
    registry = attributes.get("registry_") if isinstance(attributes, dict) else None
    if not isinstance(registry, dict):
        raise InputError(f"{path} is no model of scvi-tools: it holds no registry.")
    if (found := registry.get("model_name")) not in class_names:
        raise InputError(f"{path} is a {found}, not a {class_names[0]}: load it with that class.")
    if (written := format_of(content)) > FILE_FORMAT:
        raise InputError(
            f"{path} was written by a newer version of scdisentangle (file format {written}; this "
            f"version reads up to {FILE_FORMAT}). Update the package to load it."
        )
    return content


def _of_anndata(content: dict) -> dict:
    """The content of the file of a data module's model, as if it had been made with an AnnData."""
    attributes = content[SAVE_KEYS.ATTR_DICT_KEY]
    if not is_of_data_module(attributes["registry_"]):
        return content
    registry = as_of_anndata(attributes["registry_"])
    return {**content, SAVE_KEYS.ATTR_DICT_KEY: {**attributes, "registry_": registry}}


@contextmanager
def _folder_of(path: Path, content: dict, read: dict) -> Iterator[Path]:
    """A folder with what is to be read of a file: its own, where that is all that it holds."""
    if read is content:
        yield path.parent
        return
    with TemporaryDirectory() as folder:
        for file in path.parent.glob("*.h5*"):  # its data
            Path(folder, file.name).symlink_to(file.absolute())
        torch.save(read, Path(folder, path.name))
        yield Path(folder)


def _strange(path: Path) -> list[str]:
    """What a file asks for that no model needs."""
    needed = {f"{module}.{name}" for module, names in _NEEDED.items() for name in names}
    return sorted(set(get_unsafe_globals_in_checkpoint(path)) - needed)


def _save(save: Callable[..., None], folder: Path, *, prefix: str | None, **kwargs) -> None:
    """Save to a folder, and make sure that the file can be loaded."""
    try:
        save(str(folder), prefix=prefix, **kwargs)
        strange = _strange(folder / f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}")
    except (pickle.PicklingError, AttributeError) as error:  # of a function without a name
        if not str(error).startswith("Can't "):
            raise
        strange = [str(error)]
    if strange:
        raise InputError(
            f"The model holds what would not be loaded, as it could be any code: "
            f"{name_some(strange)}. Categories are text, numbers, dates or intervals; as "
            "var_activation, take one of torch.nn: "
            f"{', '.join(_NEEDED['torch.nn.modules.activation'])}."
        )


def _put_in_place(partial: Path, folder: Path, overwrite: bool) -> None:
    try:
        partial.rename(folder)
    except OSError as error:
        if not overwrite:
            raise InputError(f"{folder} already exists: another process saved there.") from error
        if not folder.is_dir():
            raise
        for file in partial.iterdir():
            file.replace(folder / file.name)
