"""How an AnnData is registered with the model, and checked against it later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data._utils import _get_adata_minify_type
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    MuDataWrapper,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.model.base import BaseModelClass

from . import _columns, _validation, _values
from ._errors import InputError, argument_names, check_choice, check_options
from .data._loading import AsAsked


class LabelsField(CategoricalObsField):
    """Labels, of which later data may have others: what encodes a cell does not read them."""

    def transfer_field(self, *args, **kwargs) -> dict:
        """Transfer the field, with the labels of the new data beside those that are known."""
        return super().transfer_field(*args, **{**kwargs, "extend_categories": True})


def _fields(setup_args: Mapping, mod_of: object | None = None) -> list:
    """What is registered of an AnnData, or of a MuData whose modality for an argument is known."""
    of_mudata = mod_of is not None

    def field(kind: type, key: str, argument: str, **options):
        if not of_mudata:
            return kind(key, setup_args[argument], **options)
        options["mod_key"] = getattr(mod_of, argument)
        return MuDataWrapper(kind)(key, setup_args[argument], **options)

    values = {"is_count_data": False, "correct_data_format": False}
    if of_mudata:
        values["mod_required"] = True
    return [
        field(LayerField, REGISTRY_KEYS.X_KEY, "rna_layer" if of_mudata else "layer", **values),
        field(CategoricalObsField, REGISTRY_KEYS.BATCH_KEY, "batch_key"),
        field(LabelsField, REGISTRY_KEYS.LABELS_KEY, "labels_key"),
        field(NumericalObsField, REGISTRY_KEYS.SIZE_FACTOR_KEY, "size_factor_key", required=False),
        field(CategoricalJointObsField, REGISTRY_KEYS.CAT_COVS_KEY, "categorical_covariate_keys"),
        field(NumericalJointObsField, REGISTRY_KEYS.CONT_COVS_KEY, "continuous_covariate_keys"),
    ]


class RegistrationMixin:
    """Registration through :class:`scvi.data.AnnDataManager`, with checks of our own."""

    empty_batches_: list | None = None
    """Batches that are registered, but of which training saw no cell; ``None`` before it."""

    value_kind_: _values.ValueKind | None = None
    _adopted = False

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        batch_key: str | None = None,
        layer: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        unlabeled_category: str = "Unknown",
        **kwargs,
    ) -> None:
        """Register the fields of ``adata`` that the model uses.

        Parameters
        ----------
        adata
            Cells by genes; dense, CSR or CSC; raw counts, or normalised or continuous values.
            Its values are never changed.
        batch_key
            Column of ``.obs`` with the technical batch. ``None`` takes all cells as one batch.
        layer
            Layer with the values. ``None`` is ``.X``.
        labels_key
            Column of ``.obs`` with cell types. By default the encoder of ``z_bio`` then sees genes
            in place of components, the contrast draws cells of one type together, axes stay as
            they are, and :meth:`predict` knows the types.
        size_factor_key
            Column of ``.obs`` with size factors, in place of each cell's sum over genes.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of ``.obs`` with further covariates that the decoder sees.
        unlabeled_category
            Value of ``labels_key`` that means "not labelled".
        **kwargs
            Keyword arguments for :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        InputError
            If an argument is unknown, a key is missing, a batch, label or covariate is missing for
            a cell, numbers are none or not finite, size factors are not above 0, there are no cells
            or no genes, or values are NaN or infinite.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        _validation.check_is_anndata(adata)
        if isinstance(adata, MuData):
            raise InputError(
                "adata is a MuData: register it with setup_mudata, or one of its modalities, as "
                "setup_anndata(mdata.mod['rna'], ...)."
            )
        cls._check_setup_options("setup_anndata", kwargs)
        _validation.check_no_view(adata)
        adds_labels = kwargs.get("allow_missing_labels") and labels_key not in (None, *adata.obs)
        if adds_labels:
            adata.obs[labels_key] = unlabeled_category
        try:
            cls._check_data(adata, setup_method_args["setup_args"], kwargs)
        except InputError:
            if adds_labels:
                del adata.obs[labels_key]
            raise
        fields = _fields(setup_method_args["setup_args"])
        if (minified := _get_adata_minify_type(adata)) is not None:
            fields += cls._get_fields_for_adata_minification(minified)
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        modalities: Mapping[str, str],
        rna_layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        unlabeled_category: str = "Unknown",
        **kwargs,
    ) -> None:
        """Register the fields of one modality of a MuData, and of what describes its cells.

        Parameters
        ----------
        mdata
            Cells with several modalities.
        modalities
            Modality by the argument that it is for, ``{"rna_layer": "rna", "batch_key": "rna"}``;
            arguments that it lacks are columns of ``mdata.obs``.
        rna_layer
            Layer with the values. ``None`` is ``.X``.
        batch_key, labels_key, size_factor_key, categorical_covariate_keys
            As for :meth:`setup_anndata`.
        continuous_covariate_keys, unlabeled_category, **kwargs
            As for :meth:`setup_anndata`.

        Raises
        ------
        InputError
            As for :meth:`setup_anndata`, or if no modality holds the values.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        cls._check_setup_options("setup_mudata", kwargs)
        if not isinstance(mdata, MuData):
            raise InputError(
                f"mdata is of type {type(mdata).__name__}, and must be a MuData. Register an "
                "AnnData with setup_anndata."
            )
        if modalities.get("rna_layer") not in mdata.mod:
            raise InputError(
                f"modalities={dict(modalities)} names no modality with the values. Give one of "
                f"{', '.join(mdata.mod)}: modalities={{'rna_layer': '{next(iter(mdata.mod))}'}}"
            )
        for modality in modalities.values():
            check_choice("modality", modality, mdata.mod)
        mod_of = cls._create_modalities_attr_dict(modalities, setup_method_args)
        cls._check_data(mdata, setup_method_args["setup_args"], kwargs)
        fields = _fields(setup_method_args["setup_args"], mod_of)
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(mdata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def _check_setup_options(cls, method: str, options: Mapping) -> None:
        if "source_registry" not in options:  # the others say how to follow it
            check_options(options, argument_names(getattr(cls, method)), method)

    @classmethod
    def _check_data(cls, adata: AnnData | MuData, setup_args: Mapping, options: Mapping) -> None:
        """Check data that are registered, by themselves or against those of a model."""
        measured, layer = measurements(adata, setup_args)
        _validation.check_layer(measured, layer)
        batched, labelled = (description(adata, setup_args, k) for k in ("batch_key", "labels_key"))
        labels_key, unlabeled = (setup_args.get(k) for k in ("labels_key", "unlabeled_category"))
        source_registry = options.get("source_registry")
        if source_registry is not None:
            _columns.check_has_labels(labelled, labels_key, unlabeled)
        cls._check_obs(adata, setup_args)
        _validation.check_can_be_loaded(measured, layer)
        _validation.check_values(measured, layer)
        if source_registry is not None:
            cls._check_against(adata, source_registry, options.get("extend_categories", False))
            return
        _columns.warn_of_missing(batched, "batch_key", setup_args["batch_key"])
        _columns.warn_of_missing(labelled, "labels_key", labels_key, unlabeled)
        _columns.warn_of_batches(batched, setup_args["batch_key"])
        _columns.warn_of_labels(labelled, labels_key, unlabeled)

    @staticmethod
    def _check_obs(adata: AnnData | MuData, setup_args: Mapping) -> None:
        """Check the columns of ``.obs`` that a registration names."""
        for argument in ("batch_key", "labels_key", "size_factor_key"):
            described = description(adata, setup_args, argument)
            _columns.check_columns(described, {argument: setup_args.get(argument)})
        for argument in ("categorical_covariate_keys", "continuous_covariate_keys"):
            keys = setup_args.get(argument)
            if isinstance(keys, str):
                raise InputError(f"{argument}='{keys}' must be a list: {argument}=['{keys}']")
            keys = [] if keys is None else list(keys)
            described = description(adata, setup_args, argument)
            _columns.check_columns(described, {f"{argument}[{key}]": key for key in keys})
            if argument == "continuous_covariate_keys":
                for key in keys:
                    _columns.check_numbers(described, key)
        if (key := setup_args.get("size_factor_key")) is not None:
            described = description(adata, setup_args, "size_factor_key")
            _columns.check_numbers(described, key, above_zero=True)

    @staticmethod
    def _check_against(
        adata: AnnData | MuData, registry: Mapping, new_categories: bool = False
    ) -> None:
        """Check data against those that the model was trained on."""
        setup_args = registry["setup_args"]
        states = {key: f["state_registry"] for key, f in registry["field_registries"].items()}
        measured, _ = measurements(adata, setup_args)
        _validation.check_genes(measured, states[REGISTRY_KEYS.X_KEY]["column_names"])
        fields = {"batch_key": REGISTRY_KEYS.BATCH_KEY, "labels_key": REGISTRY_KEYS.LABELS_KEY}
        for argument, field in fields.items():
            if (key := setup_args[argument]) is not None:
                known = states[field]["categorical_mapping"]
                described = description(adata, setup_args, argument)
                may_be_new = argument == "labels_key" or new_categories
                _columns.check_categories(described, key, known, may_be_new)
        covariates = states.get(REGISTRY_KEYS.CAT_COVS_KEY, {})
        described = description(adata, setup_args, "categorical_covariate_keys")
        for key, known in covariates.get("mappings", {}).items():
            _columns.check_categories(described, key, known, new_categories)

    @property
    def adata(self) -> AnnData | MuData | None:
        """The model's data. They can be set for a model that was loaded without any."""
        return self._adata

    @adata.setter
    def adata(self, adata: AnnData | MuData) -> None:
        BaseModelClass.adata.fset(self, adata)
        self._adopted = False

    def _validate_anndata(
        self, adata: AnnData | MuData | None = None, copy_if_view: bool = True
    ) -> AnnData | MuData:
        if adata is None or adata is self.adata:
            self._check_own_data()
        else:
            _validation.check_is_anndata(adata)
            setup_args = self.registry_["setup_args"]
            if isinstance(adata, MuData) != ("modalities" in setup_args):
                raise InputError(
                    f"adata is of type {type(adata).__name__}, and the model was made for "
                    f"{'a MuData' if 'modalities' in setup_args else 'an AnnData'}."
                )
            measured, layer = measurements(adata, setup_args)
            if self.minified_data_type is not None and _get_adata_minify_type(measured) is None:
                raise InputError(
                    "The model's data are minified, and so it reads codes in place of counts. For "
                    "other cells, load the model as it was before minify_adata(), or map them onto "
                    "it (load_query_data)."
                )
            self._check_data(adata, setup_args, {"source_registry": self.registry_})
            self._check_learned_batches(adata)
            self._check_kind(measured, layer)
        self._adopted |= self.adata is None  # scvi-tools makes the data the model's own
        return super()._validate_anndata(adata, copy_if_view=copy_if_view)

    def _note_empty_batches(self) -> None:
        """Note of which batches training sees no cell, and none was seen before."""
        if self.adata is None:
            return
        seen = set(self._categories(REGISTRY_KEYS.BATCH_KEY, self.adata))
        names = self._state_of(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"]
        empty = [name for code, name in enumerate(names) if code not in seen]
        before = empty if self.empty_batches_ is None else self.empty_batches_
        self.empty_batches_ = [name for name in empty if name in before]

    def _check_learned_batches(self, adata: AnnData | MuData) -> None:
        """Refuse cells of a batch of which the model knows the name, and no cell."""
        setup_args = self.registry_["setup_args"]
        if self.empty_batches_:
            described = description(adata, setup_args, "batch_key")
            _columns.check_learned(described, setup_args["batch_key"], self.empty_batches_)

    def _make_data_loader(self, adata, indices=None, batch_size=None, *args, **kwargs):
        cells = _validation.positions(indices, adata.n_obs)
        batch_size = None if batch_size is None else int(batch_size)  # PyTorch refuses NumPy's
        loader = super()._make_data_loader(adata, cells, batch_size, *args, **kwargs)
        if getattr(adata, "isbacked", False):
            loader.dataset.dataset = AsAsked(loader.dataset.dataset)
        return loader

    def _categories(
        self, key: str, adata: AnnData | MuData, indices: Sequence[int] | None = None
    ) -> np.ndarray:
        """Index of each cell's category in a registered field of checked data, ``(n_cells,)``."""
        manager = self.get_anndata_manager(adata, required=True)
        codes = np.asarray(manager.get_from_registry(key)).ravel()
        return codes[_validation.positions(indices, len(codes))]

    def _check_own_data(self) -> None:
        """Check that the model's data are there, and still what they were when registered."""
        if self.adata is None:
            raise InputError("The model was made without data: pass adata=.")
        measured, layer = measurements(self.adata, self.registry_["setup_args"])
        try:
            _validation.check_layer(measured, layer)
            _validation.check_is_filled(measured, layer)
            genes = self._state_of(REGISTRY_KEYS.X_KEY)["column_names"]
            _validation.check_genes(measured, genes)
            of_counts = self.module.fits_counts or self.value_kind_ != "others"
            if _values.begins_with_whole_counts(measured, layer) != of_counts:
                self._check_kind(measured, layer)
        except InputError as error:
            raise type(error)(
                f"The data have changed since they were registered. {error}"
            ) from error

    def _check_kind(self, measured: AnnData, layer: str | None) -> None:
        """Check that values are counts if, and only if, those that the model was made for were."""
        if _get_adata_minify_type(measured) is not None:
            return
        kind = "counts" if self.module.fits_counts else self.value_kind_
        if kind is not None:
            _validation.check_kind(measured, layer, kind)
        if self.module.fits_counts:
            _validation.check_no_cell_is_empty(measured, layer)


def measurements(adata: AnnData | MuData, setup_args: Mapping) -> tuple[AnnData, str | None]:
    """The AnnData that holds the values, and their layer."""
    if isinstance(adata, MuData):
        return adata.mod[setup_args["modalities"]["rna_layer"]], setup_args["rna_layer"]
    return adata, setup_args["layer"]


def description(adata: AnnData | MuData, setup_args: Mapping, argument: str) -> AnnData | MuData:
    """What holds the column of ``.obs`` that an argument of the registration names."""
    modality = setup_args.get("modalities", {}).get(argument)
    return adata if modality is None else adata.mod[modality]
