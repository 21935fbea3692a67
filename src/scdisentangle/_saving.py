"""Saving that leaves no half of a model, and loading that runs no code of the file."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data._download import _download
from scvi.model.base._constants import SAVE_KEYS
from torch.serialization import get_unsafe_globals_in_checkpoint

from ._aside import aside, flush
from ._errors import InputError, name_some
from ._nio_flows import renamed
from ._validation import check_is_anndata

FILE_FORMAT = 13
"""Raised when the package of yesterday would not give what a file of today means."""
FIRST_WITH_SPHERES = 2
"""File format since which ``z_bio`` is on a sphere unless the model says otherwise."""
FIRST_WITH_NARROW_NIO = 5
"""File format since which the encoder of ``z_nio`` has units of its own number."""
FIRST_WITH_SCALED_SIZE_FACTORS = 8
"""File format since which size factors are scaled to counts."""
FIRST_WITH_BOTH_LOSSES = 11
"""File format since which squared error trains codes too unless the model says otherwise."""

_NEEDED = {
    "builtins": ("bytes", "dict", "list", "set", "slice", "tuple"),
    "collections": ("OrderedDict", "defaultdict"),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "pandas": ("DataFrame", "Index", "RangeIndex", "StringDtype"),
    "pandas._libs.internals": ("_unpickle_block",),
    "pandas.arrays": ("ArrowStringArray", "StringArray"),
    "pandas.core.arrays.string_": ("StringDtype",),
    "pandas.core.frame": ("DataFrame",),
    "pandas.core.indexes.base": ("Index", "_new_Index"),
    "pandas.core.indexes.range": ("RangeIndex",),
    "pandas.core.internals.managers": ("BlockManager",),
    "torch.nn.modules.activation": ("ReLU", "Sigmoid", "Softplus"),
    "pyarrow.lib": ("_restore_array", "py_buffer", "type_for_alias"),
}
"""What a model file is made of besides tensors: arrays, the history's tables, activations."""


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
        of_module = self.registry.get("setup_method_name") == "setup_datamodule"
        if of_module and kwargs.get("datamodule") is None:
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
            Data for the model; ``None`` takes those that were saved with it, ``False`` none.
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
        written = check_model_file(path, cls.__name__)
        datamodule = kwargs.pop("datamodule", None)  # of which scvi-tools would build another model
        try:
            model = super().load(
                str(dir_path),
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
        if written < FIRST_WITH_BOTH_LOSSES and "code_loss" not in model._module_kwargs:
            model._train_codes_by_likelihood()
        if hasattr(model, "frozen_"):
            model.frozen_["known"] = renamed(model.frozen_["known"])
        model.module.on_load(model)  # anew, since embeddings are other parameters once loaded
        if written < FIRST_WITH_SPHERES:
            model.module.encoder.bio_head.spherical = False
            model.module.axes = None
            model.module.alignment.spherical = False
            model.init_params_["kwargs"]["module_kwargs"] |= {"spherical": False, "axes": False}
        if written < FIRST_WITH_NARROW_NIO:
            n_hidden_nio = model.module.encoder.nio_head.mean.in_features
            model.init_params_["kwargs"]["module_kwargs"]["n_hidden_nio"] = n_hidden_nio
        if written < FIRST_WITH_SCALED_SIZE_FACTORS:
            model.module.counts_per_size_factor = 1.0
            model.init_params_["kwargs"]["module_kwargs"]["counts_per_size_factor"] = 1.0
        return model

    def _train_codes_by_likelihood(self) -> None:
        """Be as earlier versions made the model, with what else follows from that."""
        loaded = self.module
        self._module_kwargs["code_loss"] = "likelihood"
        self.init_params_["kwargs"]["module_kwargs"]["code_loss"] = "likelihood"
        self.module = self._module_cls(**self._sizes(), **self._module_kwargs)
        self.module.load_state_dict(loaded.state_dict())
        self.module.minified_data_type = loaded.minified_data_type
        self.module.to(loaded.device).train(loaded.training)

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


def check_model_file(path: Path, class_name: str) -> int:
    """Check a model file without running what it may hold.

    Returns
    -------
    The file format that it was written in.

    Raises
    ------
    InputError
        If it is missing or damaged, asks for what no model needs, is of another class, or newer.
    """
    if not path.is_file():
        raise InputError(f"There is no model file {path}. Name the folder that save() wrote.")
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
    if (found := registry.get("model_name")) != class_name:
        raise InputError(f"{path} is a {found}, not a {class_name}: load it with that class.")
    if (written := attributes.get("file_format_", 1)) > FILE_FORMAT:
        raise InputError(
            f"{path} was written by a newer version of scdisentangle (file format {written}; this "
            f"version reads up to {FILE_FORMAT}). Update the package to load it."
        )
    return written


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
        strange = [str(error)]
    if strange:
        raise InputError(
            f"The model holds what would not be loaded, as it could be any code: "
            f"{name_some(strange)}. As var_activation, take one of torch.nn: "
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
