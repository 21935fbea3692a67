"""New batches on a trained model: only what belongs to them is trained."""

from __future__ import annotations

import warnings
from copy import copy
from pathlib import Path

import torch
from mudata import MuData
from scvi.model.base import ArchesMixin
from scvi.model.base._constants import SAVE_KEYS
from scvi.nn import FCLayers
from torch import Tensor, nn

from ._data_modules import as_of_anndata, is_of_data_module
from ._errors import InputError, name_some
from ._saving import check_model_file


class QueryMappingMixin(ArchesMixin):
    """scArches (Lotfollahi et al. 2022, Nature Biotechnology 40:121), as in scvi-tools."""

    @classmethod
    def load_query_data(
        cls,
        adata=None,
        reference_model=None,
        *,
        unfrozen: bool = False,
        freeze_dropout: bool = False,
        freeze_expression: bool = True,
        freeze_decoder_first_layer: bool = True,
        freeze_classifier: bool = True,
        **kwargs,
    ):
        """A model for new batches, that goes on from a trained one.

        The encoder of ``z_bio`` does not see the batch, so that the codes of new cells are right
        away on the map of the reference. Training fits what only the new batches use: what their
        genes are off by in the encoder's eyes, their ``z_nio``, their column in the decoder, their
        output of the classifier, and the shift that aligns their ``z_bio`` with the reference's
        clusters. The codes of the reference's cells stay what they were. With a quantised
        ``z_nio``, a cell of a new batch takes the code of its batch, which the encoder of ``z_nio``
        has not learned to tell.

        Parameters
        ----------
        adata
            Data with the model's genes; see ``prepare_query_anndata``.
        reference_model
            A trained model, or the folder that it was saved in.
        unfrozen
            Whether to train everything, whatever the options below say. ``predict`` then knows
            labels of the query's own cells only, because those of the reference move.
        freeze_dropout
            Whether to switch dropout off.
        freeze_expression, freeze_decoder_first_layer, freeze_classifier
            Whether the encoders' first layers, the decoder's first layer and the classifier stay
            as they are. Without the first, ``predict`` is as with ``unfrozen``.
        **kwargs
            ``registry``, ``inplace_subset_query_vars``, ``accelerator``, ``device``, … as in
            scvi-tools. There is no batch normalisation to freeze.

        Returns
        -------
        The new model, to be trained; if all its batches are the reference's, it is ready.

        Raises
        ------
        InputError
            If the reference is not trained, or the data do not suit it.
        """
        if isinstance(reference_model, str | Path):
            folder = Path(reference_model)
            files = (folder / SAVE_KEYS.ADATA_FNAME, folder / SAVE_KEYS.MDATA_FNAME)
            saved = any(file.exists() for file in files)
            reference_model = cls.load(str(folder), adata=None if saved else False)
            if not saved and isinstance(adata, MuData):
                raise InputError(
                    f"The model in {folder} was saved without its MuData, whose genes a query is "
                    "held against. Pass the model, loaded with it: load(folder, adata=mdata)."
                )
        if not getattr(reference_model, "is_trained_", False):
            raise InputError(
                f"reference_model is a {type(reference_model).__name__} that is not trained. Pass "
                "a trained model, or the folder that it was saved in."
            )
        if adata is not None:
            if is_of_data_module(reference_model.registry_):
                reference_model = copy(reference_model)
                reference_model.registry_ = as_of_anndata(reference_model.registry_)
            reference_model._check_learned_batches(adata)
        reference = reference_model.module
        model = super().load_query_data(
            adata, reference_model, unfrozen=True, **{"transfer_batch": True, **kwargs}
        )
        model.to_device(model.module.gene_shifts.shifts.device)  # where embeddings may not be
        known = _grow(reference, model.module)
        moves = unfrozen or not freeze_expression
        model.labelled_codes_ = None if moves else reference_model._labelled_codes()
        parts = {
            "encoder.bio_encoder.fc_layers.Layer 0": freeze_expression,
            "encoder.nio_encoder.fc_layers.Layer 0": freeze_expression,
            "decoder.trunk.fc_layers.Layer 0": freeze_decoder_first_layer,
            "classifier": freeze_classifier,
        }
        model.frozen_ = {
            "known": known,
            "free": [part for part, is_frozen in parts.items() if not is_frozen],
            "dropout": freeze_dropout,
        }
        model.empty_batches_ = reference_model.empty_batches_ or []
        model.n_reference_batches_ = 0 if unfrozen else reference.n_batch
        model.n_learned_batches_ = model.module.n_batch if unfrozen else reference.flow.n_learned
        model.module.on_load(model)
        model.is_trained_ = model.module.is_frozen
        return model

    @classmethod
    def prepare_query_anndata(
        cls,
        adata,
        reference_model,
        return_reference_var_names: bool = False,
        inplace: bool = True,
    ):
        """The reference's genes, in its order and 0 where they are missing, as in scvi-tools.

        Parameters
        ----------
        adata, reference_model
            As for :meth:`load_query_data`.
        return_reference_var_names
            Whether to return the reference's genes alone.
        inplace
            Whether to change ``adata``, or to return another, which shares nothing with it.

        Raises
        ------
        InputError
            If names of cells or genes are not unique, no gene is one of the reference's, or the
            file of a model is refused.
        """
        for names in ("obs_names", "var_names"):
            if not getattr(adata, names).is_unique:
                raise InputError(
                    f"adata.{names} are not unique, so that genes cannot be put in the reference's "
                    f"order: adata.{names}_make_unique()"
                )
        reference_model = _checked(reference_model, cls.__name__)
        genes = ArchesMixin.prepare_query_anndata(adata, reference_model, True)
        if return_reference_var_names:
            return genes
        if not adata.var_names.isin(genes).any():
            raise InputError(
                f"No gene of adata is one of the reference's: it has {name_some(adata.var_names)}, "
                f"and the reference {name_some(genes)}. Name genes alike, all by symbols or all by "
                "identifiers: adata.var_names = adata.var[...]"
            )
        prepared = adata if inplace else adata.copy()  # scvi-tools may drop genes of it even so
        uns, raw = prepared.uns, prepared.raw
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Only some AnnData objects have `.raw`")
            ArchesMixin.prepare_query_anndata(prepared, reference_model, inplace=True)
        prepared.uns = uns  # which scvi-tools leaves out where genes are added, as what follows
        if raw is not None and prepared.raw is None:
            prepared.raw = raw.to_adata()
        return None if inplace else prepared

    @classmethod
    def prepare_query_mudata(cls, mdata, reference_model, *args, **kwargs):
        """As :meth:`prepare_query_anndata`, for each modality.

        Parameters
        ----------
        mdata, reference_model
            As for :meth:`load_query_data`.
        *args, **kwargs
            ``return_reference_var_names``, ``inplace``.
        """
        return ArchesMixin.prepare_query_mudata(
            mdata, _checked(reference_model, cls.__name__), *args, **kwargs
        )


def _checked(reference_model, class_name: str):
    """A model, or the folder of one, of which the file was checked."""
    if not isinstance(reference_model, str | Path):
        return reference_model
    check_model_file(Path(reference_model) / SAVE_KEYS.MODEL_FNAME, class_name)
    return str(reference_model)


@torch.no_grad()
def _grow(reference: nn.Module, module: nn.Module) -> dict[str, Tensor]:
    """Put what the reference learned in its place in a module with more categories.

    Returns
    -------
    For each parameter that has grown, by name, where the values of the reference are.
    """
    learned, parameters = dict(reference.named_parameters()), dict(module.named_parameters())
    known = {
        name: torch.zeros_like(parameter, dtype=torch.bool)
        for name, parameter in parameters.items()
        if parameter.shape != learned[name].shape
    }
    for name, mask in known.items():
        mask[tuple(slice(size) for size in learned[name].shape)] = True
    for name, layers in module.named_modules():
        if not isinstance(layers, FCLayers):
            continue
        old = reference.get_submodule(name)
        for i, (layer, old_layer) in enumerate(zip(layers.fc_layers, old.fc_layers, strict=True)):
            weight_name = f"{name}.fc_layers.Layer {i}.0.weight"
            if weight_name not in known:
                continue
            weight, old_weight = layer[0].weight, old_layer[0].weight
            columns, single = _columns(old_weight.shape[1], old.n_cat_list, layers.n_cat_list)
            weight[:, columns] = old_weight.to(weight.device)
            weight[:, single] = 0.0
            known[weight_name][:] = False
            known[weight_name][:, columns + single] = True
    return known


def _columns(n_old: int, old_cats: list[int], new_cats: list[int]) -> tuple[list[int], list[int]]:
    """Where a weight's old columns are among the new, and those of what was the only category.

    The columns of each covariate's categories follow the other inputs; a covariate with one
    category has none.
    """
    start = n_old - sum(old_cats)
    columns, single = list(range(start)), []
    for old, new in zip(old_cats, new_cats, strict=True):
        columns += range(start, start + old)
        single += [start] if old == 0 < new else []
        start += new
    return columns, single
