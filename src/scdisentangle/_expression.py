"""Decoded expression and what is computed from it: scvi-tools' methods, with our conditions."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.model._utils import scrna_raw_counts_properties
from scvi.model.base import RNASeqMixin, VAEMixin
from scvi.model.base._de_core import _de_core

from ._columns import check_column
from ._data_modules import check_alone
from ._errors import (
    InputError,
    argument_names,
    check_options,
    check_positive,
    did_you_mean,
    name_some,
)
from ._likelihoods import COUNT_LIKELIHOODS
from ._registration import measurements
from ._validation import positions

OVERDISPERSED = ("nb", "zinb")
OF_A_DRAW = {"inference_kwargs": {"n_samples": 1}}
GROUPS = ("groupby", "group1", "group2", "idx1")


class ExpressionMixin(RNASeqMixin, VAEMixin):
    """From codes to expression, likelihoods and differential expression.

    Where cells are decoded in a batch of your choice (``transform_batch``), ``z_nio`` is replaced
    by what stands for that batch, :attr:`NioFlow.of_batch`.
    """

    def get_normalized_expression(
        self, adata=None, indices=None, transform_batch=None, *args, **kwargs
    ):
        """Decoded expression, as by :meth:`scvi.model.SCVI.get_normalized_expression`.

        For counts it is each gene's share of the cell's counts, times ``library_size``; for
        ``gene_likelihood="mse"`` and ``"normal"`` it is on the scale that the encoder sees.

        Parameters
        ----------
        adata, indices
            As for :meth:`get_latent_representation`.
        transform_batch
            Batch to decode all cells in, with ``z_nio`` of that batch; a list of them, or
            ``"all"``, to average over, unless a batch is called so; ``None`` for each cell's own,
            with its own ``z_nio``.
        *args, **kwargs
            ``gene_list``, ``library_size`` (1, a number or ``"latent"``), ``n_samples``,
            ``n_samples_overall``, ``weights``, ``batch_size``, ``return_mean``, ``return_numpy``,
            ``silent``, ``dataloader`` and ``data_loader_kwargs``, as in scvi-tools. ``n_samples``
            are draws from variational codes; others have one value.

        Returns
        -------
        DataFrame of shape ``(n_cells, n_genes)``, or what ``n_samples`` and ``return_numpy`` make
        of it in scvi-tools.

        Raises
        ------
        InputError
            If an option or a gene is unknown, ``library_size`` is not above 0, or a number for
            values that are not counts, or importance weights are asked for where there is no
            posterior.
        """
        self._check_if_trained(warn=False)
        check_options(kwargs, _options_of_expression(), "get_normalized_expression")
        asked = inspect.signature(super().get_normalized_expression).bind(
            adata, indices, self._batches(transform_batch), *args, **kwargs
        )
        kwargs = dict(asked.arguments)
        kwargs |= kwargs.pop("importance_weighting_kwargs", {})
        library_size = kwargs.get("library_size", 1)
        if not (isinstance(library_size, str) and library_size == "latent"):
            check_positive(library_size=library_size)
            if library_size != 1:
                self._require_likelihood("library_size=", COUNT_LIKELIHOODS)
        self._check_chosen(transform_batch, kwargs.get("gene_list"), kwargs.get("dataloader"))
        if kwargs.get("n_samples_overall") is not None:
            kwargs["return_numpy"] = True  # scvi-tools would name the draws after the cells
        if kwargs.get("weights") == "importance":
            self._require_likelihood("weights='importance'", OVERDISPERSED)
            self._require_posterior("weights='importance'")
        cells = self.adata if adata is None else adata
        if indices is not None and cells is not None:
            kwargs["indices"] = indices = positions(indices, cells.n_obs)
        if not isinstance(cells, MuData):
            return super().get_normalized_expression(**kwargs)
        chosen = self._positions_in_modality(cells, kwargs.pop("gene_list", None))
        as_array = kwargs.pop("return_numpy", None)
        expression = super().get_normalized_expression(**kwargs, return_numpy=True)[..., chosen]
        if as_array or expression.ndim == 3 or kwargs.get("dataloader") is not None:
            return expression
        names = self._modality(cells).var_names[chosen]
        index = cells.obs_names if indices is None else cells.obs_names[indices]
        return pd.DataFrame(expression, index=index, columns=names)

    def posterior_predictive_sample(
        self,
        adata=None,
        indices=None,
        transform_batch=None,
        n_samples: int = 1,
        gene_list=None,
        *args,
        **kwargs,
    ):
        """Draws of new values for each cell, as by scvi-tools.

        Parameters
        ----------
        adata, indices
            As for :meth:`get_normalized_expression`.
        transform_batch
            As there. Of several batches it is the mean of a draw in each, which varies less than a
            draw, and need not be whole.
        n_samples
            Draws for each cell.
        gene_list
            Genes to take, all if ``None``.
        *args, **kwargs
            ``batch_size``, ``dataloader``, ``silent``, as in scvi-tools.

        Returns
        -------
        Sparse array of shape ``(n_cells, n_genes)``, or ``(n_cells, n_genes, n_samples)``: counts,
        or with ``gene_likelihood="mse"`` and ``"normal"`` values on the normalised scale.
        """
        self._check_chosen(transform_batch, gene_list, kwargs.get("dataloader"))
        cells = self.adata if adata is None else adata
        in_modality = isinstance(cells, MuData)
        draws = super().posterior_predictive_sample(
            adata,
            indices,
            self._batches(transform_batch),
            n_samples,
            None if in_modality else gene_list,
            *args,
            **kwargs,
        )
        return draws[:, self._positions_in_modality(cells, gene_list)] if in_modality else draws

    def get_feature_correlation_matrix(self, *args, **kwargs):
        """Correlation of genes over denoised draws, as by scvi-tools, for ``"nb"`` and ``"zinb"``.

        Parameters
        ----------
        *args, **kwargs
            As in scvi-tools; ``transform_batch`` as for :meth:`get_normalized_expression`.
        """
        self._require_likelihood("get_feature_correlation_matrix", OVERDISPERSED)
        if isinstance(self.adata, MuData):
            raise InputError(
                "get_feature_correlation_matrix takes no MuData. Make the model with the AnnData "
                "of its modality."
            )
        correlate = super().get_feature_correlation_matrix
        asked = inspect.signature(correlate).bind(*args, **kwargs).arguments
        return correlate(**asked | {"transform_batch": self._batches(asked.get("transform_batch"))})

    def get_likelihood_parameters(self, *args, **kwargs) -> dict[str, np.ndarray]:
        """Parameters of the likelihood in each cell, as by scvi-tools, for ``"nb"`` and ``"zinb"``.

        Parameters
        ----------
        *args, **kwargs
            As in scvi-tools.

        Returns
        -------
        ``"mean"``, ``"dispersions"`` and, for ``"zinb"``, ``"dropout"``, each of shape
        ``(n_cells, n_genes)``.
        """
        self._require_likelihood("get_likelihood_parameters", OVERDISPERSED)
        return super().get_likelihood_parameters(*args, **kwargs)

    def differential_expression(self, adata=None, *args, **kwargs):
        """Compare groups of cells gene by gene, as by scvi-tools' method of this name.

        For ``gene_likelihood="mse"`` and ``"normal"``, the change of ``mode="change"`` is the
        difference of the decoded values, in log2 units where counts were log-normalised.

        Parameters
        ----------
        adata
            As for :meth:`get_latent_representation`.
        *args, **kwargs
            ``groupby``, ``group1``, ``group2``, ``mode`` (``"vanilla"`` or ``"change"``),
            ``batch_correction``, ``delta``, … as in scvi-tools.

        Returns
        -------
        DataFrame with a row for each gene and comparison.

        Raises
        ------
        InputError
            If ``groupby`` is no column of ``.obs``, or has no cells of a group.
        """
        compare = super().differential_expression
        asked = inspect.signature(compare).bind(adata, *args, **kwargs)
        asked.apply_defaults()
        options = asked.arguments
        if options["mode"] == "change" and not self.module.fits_counts:
            unit = np.log(2) if self.module.log_normalize else 1.0

            def change(x, y, pseudocounts=0.0):
                return (x - y) / unit

            options["kwargs"] = {"change_fn": change, "pseudocounts": 0.0, **options["kwargs"]}
        cells = self.adata if adata is None else adata
        if options.get("dataloader") is not None:
            check_alone(options["dataloader"], batch_correction=options["batch_correction"] or None)
        elif cells is not None:
            _check_groups(cells, **{name: options[name] for name in GROUPS})
        if not isinstance(cells, MuData):
            return compare(*asked.args, **asked.kwargs)
        return self._compare_in_modality(**options)

    def _compare_in_modality(
        self,
        adata: MuData | None,
        *,
        batch_size: int | None,
        fdr_target: float,
        weights: str | None,
        filter_outlier_cells: bool,
        importance_weighting_kwargs: dict | None,
        kwargs: dict | None = None,
        **asked,
    ) -> pd.DataFrame:
        """Differential expression as scvi-tools' models of MuData do it, for one modality."""
        mdata = self._validate_anndata(adata)
        expression = partial(
            self.get_normalized_expression,
            return_numpy=True,
            n_samples=1,
            batch_size=batch_size,
            weights=weights,
            **(importance_weighting_kwargs or {}),
        )
        taken = inspect.signature(_de_core).parameters.keys() & asked.keys()
        return _de_core(
            self.get_anndata_manager(mdata, required=True),
            expression,
            self.get_latent_representation if filter_outlier_cells else None,
            all_stats_fn=scrna_raw_counts_properties,
            col_names=measurements(mdata, self.registry_["setup_args"])[0].var_names,
            fdr=fdr_target,
            **{name: asked[name] for name in taken},
            **(kwargs or {}),
        )

    def get_reconstruction_error(self, *args, **kwargs):
        """Reconstruction error, as by scvi-tools; of a draw of a variational code.

        Parameters
        ----------
        *args, **kwargs
            As in scvi-tools.
        """
        return super().get_reconstruction_error(*args, **{**OF_A_DRAW, **kwargs})

    def get_elbo(self, *args, **kwargs):
        """Evidence lower bound, as by scvi-tools; higher is better.

        With a quantised ``z_nio``, of the likelihood given ``z_nio``.

        Parameters
        ----------
        *args, **kwargs
            As in scvi-tools.

        Raises
        ------
        InputError
            If the reconstruction term is no likelihood, or a code has no posterior.
        """
        self._require_elbo("get_elbo")
        return super().get_elbo(*args, **{**OF_A_DRAW, **kwargs})

    def get_marginal_ll(self, *args, **kwargs):
        """Marginal log-likelihood by importance sampling, as by scvi-tools; higher is better.

        Parameters
        ----------
        *args, **kwargs
            As in scvi-tools.

        Raises
        ------
        InputError
            If the reconstruction term is no likelihood, or a code has no posterior.
        """
        self._require_elbo("get_marginal_ll")
        return super().get_marginal_ll(*args, **kwargs)

    def get_aggregated_posterior(self, *args, **kwargs) -> torch.distributions.Distribution:
        """Mixture of the cells' posteriors of ``z_bio``, as by scvi-tools.

        Parameters
        ----------
        *args, **kwargs
            As in scvi-tools.

        Raises
        ------
        InputError
            If ``z_bio`` has no posterior.
        """
        self._require_posterior("get_aggregated_posterior")
        return super().get_aggregated_posterior(*args, **kwargs)

    def _modality(self, cells: MuData) -> AnnData:
        return measurements(cells, self.registry_["setup_args"])[0]

    def _positions_in_modality(self, cells: MuData, genes: Sequence[str] | None) -> np.ndarray:
        """Where genes are in the modality of the values; scvi-tools looks in all modalities."""
        names = self._modality(cells).var_names
        return np.arange(len(names)) if genes is None else np.flatnonzero(names.isin(genes))

    def _check_chosen(self, transform_batch, genes: Sequence[str] | None, dataloader) -> None:
        """Check what is to be decoded: genes that are known, and all of a data loader's."""
        check_alone(dataloader, transform_batch=transform_batch, gene_list=genes)
        if genes is None:
            return
        if isinstance(genes, str):
            raise InputError(f"gene_list='{genes}' must be a list of genes: ['{genes}'].")
        known = self._state_of(REGISTRY_KEYS.X_KEY)["column_names"]
        if len(unknown := pd.Index(genes).difference(known)):
            raise InputError(
                f"gene_list has {len(unknown)} genes that the model does not know: "
                f"{name_some(unknown)}. It knows those of model.get_var_names()."
            )

    def _batches(self, transform_batch) -> Sequence | None:
        if transform_batch is None:
            return None
        known = list(self._state_of(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"])
        if isinstance(transform_batch, str) and transform_batch == "all":
            return ["all"] if "all" in known else known  # differential expression asks by name
        if np.ndim(transform_batch) and len(transform_batch) == 0:
            raise InputError(
                "transform_batch=[] names no batch. Name some, or take 'all', or None for each "
                "cell's own."
            )
        for batch in [transform_batch] if np.ndim(transform_batch) == 0 else transform_batch:
            if batch is not None and batch not in known:
                of_type = " as text" if isinstance(batch, str) and batch in map(str, known) else ""
                raise InputError(
                    f"transform_batch={batch!r} is no batch of the model{of_type}. "
                    f"{did_you_mean(str(batch), map(str, known))}"
                )
        return transform_batch

    def _require_likelihood(self, what: str, likelihoods: Sequence[str]) -> None:
        if (found := self.module.gene_likelihood) not in likelihoods:
            raise InputError(
                f"{what} is not defined for gene_likelihood='{found}', only for "
                f"{', '.join(likelihoods)}."
            )

    def _require_posterior(self, what: str) -> None:
        if self.module.encoder.bio_head.log_variance is None:
            raise InputError(
                f"{what} needs a posterior of z_bio, but z_bio is a point (kl_weight_bio=0). Train "
                "a model with kl_weight_bio > 0; get_reconstruction_error works for any."
            )

    def _require_elbo(self, what: str) -> None:
        self._require_likelihood(what, (*COUNT_LIKELIHOODS, "normal"))
        self._require_posterior(what)
        flow = self.module.flow
        if not (flow.is_of_batch or flow.is_variational):
            raise InputError(
                f"{what} needs a posterior of z_nio too, but with nio_flow="
                f"'{self.module.nio_flow}' it is a point. Take nio_flow='quantized' or "
                "'variational'."
            )


def _options_of_expression() -> set[str]:
    """What ``get_normalized_expression`` takes, and its importance weights."""
    methods = (RNASeqMixin.get_normalized_expression, RNASeqMixin.get_importance_weights)
    return argument_names(*methods)


def _check_groups(cells: AnnData | MuData, groupby, group1, group2, idx1) -> None:
    """Check that the groups to compare, where they are named by a column, have cells."""
    if groupby is None and group1 is None and idx1 is None:
        raise InputError(
            "Name what to compare: groupby=, a column of adata.obs, or idx1=, the cells themselves."
        )
    if groupby is None and group1 is not None:
        raise InputError(
            f"group1={group1!r} needs groupby=, the column of adata.obs that it is a group of."
        )
    if not isinstance(groupby, str):
        return
    check_column(cells, "groupby", groupby)
    found = cells.obs[groupby].dropna().unique().tolist()
    if not found:
        raise InputError(f"adata.obs['{groupby}'] (groupby) has no value for any cell.")
    several = isinstance(group1, Iterable) and not isinstance(group1, str)
    for group in [*(group1 if several else [group1]), group2]:
        if group is None or group in found:
            continue
        if str(group) in map(str, found):
            way_out = f"Groups are of type {type(found[0]).__name__} there."
        else:
            way_out = did_you_mean(str(group), map(str, found))
        raise InputError(
            f"adata.obs['{groupby}'] (groupby) has no cells of group {group!r}. {way_out}"
        )
