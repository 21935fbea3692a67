"""A model whose AnnData holds codes in place of counts."""

from __future__ import annotations

from anndata import AnnData
from mudata import MuData
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.data.fields import ObsmField
from scvi.model.base import BaseMinifiedModeModelClass

from ._errors import InputError, check_choice
from ._sampling import NIO_QZM_KEY, NIO_QZV_KEY


class MinificationMixin(BaseMinifiedModeModelClass):
    """``minify_adata`` of scvi-tools, which stores ``z_bio``, with ``z_nio`` beside it."""

    _LATENT_QZM_KEY = "scvi_latent_qzm"
    _LATENT_QZV_KEY = "scvi_latent_qzv"

    def minify_adata(
        self,
        minified_data_type: str = ADATA_MINIFY_TYPE.LATENT_POSTERIOR,
        use_latent_qzm_key: str = "X_latent_qzm",
        use_latent_qzv_key: str = "X_latent_qzv",
    ) -> None:
        """Put codes in place of counts in a new AnnData, as in scvi-tools.

        Parameters
        ----------
        minified_data_type
            ``"latent_posterior_parameters"``, or ``"latent_posterior_parameters_with_counts"``,
            which keeps the counts beside the codes.
        use_latent_qzm_key, use_latent_qzv_key
            Keys of ``adata.obsm`` with the means and variances of ``z_bio``.

        Raises
        ------
        InputError
            If the model's data are a MuData, or have no codes at these keys.
        """
        if isinstance(self.adata, MuData):
            raise InputError(
                "A MuData cannot be minified. Make the model with the AnnData of its modality, as "
                "mdata.mod['rna'], or keep the counts."
            )
        check_choice("minified_data_type", minified_data_type, ADATA_MINIFY_TYPE)
        if self.adata is None:
            raise InputError("The model was made without data: there is nothing to minify.")
        for key in (use_latent_qzm_key, use_latent_qzv_key):
            if key not in self.adata.obsm:
                raise InputError(
                    f"'{key}' is not in adata.obsm. Put the codes there first: "
                    "adata.obsm['X_latent_qzm'], adata.obsm['X_latent_qzv'] = "
                    "model.get_latent_representation(return_dist=True)"
                )
        super().minify_adata(minified_data_type, use_latent_qzm_key, use_latent_qzv_key)

    @classmethod
    def _get_fields_for_adata_minification(cls, minified_data_type: str) -> list:
        nio = [ObsmField(key, f"scvi_{key}") for key in (NIO_QZM_KEY, NIO_QZV_KEY)]
        return [*super()._get_fields_for_adata_minification(minified_data_type), *nio]

    def _update_adata_and_manager_post_minification(
        self, minified_adata: AnnData, minified_data_type: str
    ) -> None:
        codes = self.get_latent_representation(representation="batch", return_dist=True)
        for key, code in zip((NIO_QZM_KEY, NIO_QZV_KEY), codes, strict=True):
            minified_adata.obsm[f"scvi_{key}"] = code
        super()._update_adata_and_manager_post_minification(minified_adata, minified_data_type)
