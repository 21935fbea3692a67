"""The codes of cells, and what the classifier reads from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data._utils import _validate_adata_dataloader_input

from ._data_modules import check_alone, is_of_data_module
from ._errors import InputError, check_choice
from ._validation import positions

Representation = Literal["bio", "batch", "joint"]
PARTS = {"bio": ("bio",), "batch": ("nio",), "joint": ("bio", "nio")}


class LatentMixin:
    """From cells to codes."""

    def _run_encoder(
        self,
        adata=None,
        indices=None,
        batch_size=None,
        dataloader=None,
        n_samples=None,
        **data_loader_kwargs,
    ):
        self._check_if_trained(warn=False)
        check_alone(dataloader, adata=adata, indices=indices)
        if adata is not None and is_of_data_module(self.registry_):
            raise InputError(
                "The model was trained from a data module, and takes cells as dataloader=. To give "
                "it an AnnData, save it, and load it with one: DisentangleModel.load(folder, adata)"
            )
        _validate_adata_dataloader_input(self, adata, dataloader)
        if dataloader is None:
            adata = self._validate_anndata(adata)
            dataloader = self._make_data_loader(
                adata=adata, indices=indices, batch_size=batch_size, **data_loader_kwargs
            )
        for tensors in dataloader:
            inputs = self.module._get_inference_input(tensors)
            yield self.module.inference(**inputs, n_samples=n_samples)

    @torch.inference_mode()
    def iter_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader=None,
        representation: Representation = "bio",
        **data_loader_kwargs,
    ) -> Iterator[np.ndarray | tuple[np.ndarray, np.ndarray]]:
        """As :meth:`get_latent_representation`, one minibatch at a time.

        For cells whose codes are not to be in memory all at once.

        Parameters
        ----------
        adata, indices, give_mean, batch_size, return_dist
            As for :meth:`get_latent_representation`.
        dataloader, representation, **data_loader_kwargs
            As for :meth:`get_latent_representation`.

        Yields
        ------
        The codes of the next cells, shape ``(n_cells, n_latent)``; mean and variance with
        ``return_dist``.

        Raises
        ------
        InputError
            As :meth:`get_latent_representation`, once the first codes are asked for.

        Examples
        --------
        >>> import numpy as np
        >>> import scdisentangle
        >>> adata = scdisentangle.data.simulated(n_cells=200, n_genes=100)
        >>> scdisentangle.DisentangleModel.setup_anndata(adata, batch_key="batch")
        >>> model = scdisentangle.DisentangleModel(adata)
        >>> model.train(max_epochs=2)
        >>> sum(len(codes) for codes in model.iter_latent_representation(batch_size=32))
        200
        """
        check_choice("representation", representation, PARTS)
        codes = PARTS[representation]
        n_samples = None if give_mean or return_dist else 1
        for outputs in self._run_encoder(
            adata, indices, batch_size, dataloader, n_samples, **data_loader_kwargs
        ):
            mean = torch.cat([outputs[f"z_{code}"] for code in codes], dim=1).cpu().numpy()
            if return_dist:
                variance = torch.cat([_variance(outputs, code) for code in codes], dim=1)
                yield mean, variance.cpu().numpy()
            else:
                yield mean

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        mc_samples: int = 1,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader=None,
        representation: Representation = "bio",
        **data_loader_kwargs,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The code of each cell; the same for a cell whatever cells are beside it.

        Parameters
        ----------
        adata
            Data with the model's genes. ``None`` is the data that the model was made with.
        indices
            Positions of the cells to take, or a mask; all if ``None``.
        give_mean
            Whether to take the mean of variational codes, or a draw from their posterior.
        mc_samples
            As in scvi-tools, for posteriors without a mean in closed form; ours have one.
        batch_size
            Cells in a minibatch, ``scvi.settings.batch_size`` if ``None``.
        return_dist
            Whether to return mean and variance of the posterior; the variance of a code that is
            not variational is 0.
        dataloader
            Iterable of minibatches, in place of ``adata``.
        representation
            ``"bio"`` for ``z_bio``, ``"batch"`` for ``z_nio``, ``"joint"`` for both, side by side.
        **data_loader_kwargs
            Keyword arguments for the data loader.

        Returns
        -------
        Array of shape ``(n_cells, n_latent_bio)``, ``(n_cells, n_latent_nio)`` or
        ``(n_cells, n_latent_bio + n_latent_nio)``, in the order of the cells asked for; two of
        them with ``return_dist``.

        Raises
        ------
        InputError
            If the genes or the batches are not those of the model, or there are no such cells.
        """
        minibatches = self.iter_latent_representation(
            adata,
            indices,
            give_mean,
            batch_size,
            return_dist,
            dataloader,
            representation,
            **data_loader_kwargs,
        )
        if not return_dist:
            return np.concatenate(list(minibatches))
        means, variances = zip(*minibatches, strict=True)
        return np.concatenate(means), np.concatenate(variances)

    @torch.inference_mode()
    def get_batch_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """The vector of each cell's batch.

        The one that the decoder reads with ``batch_representation="embedding"``; else what stands
        for the batch's ``z_nio``, see ``NioFlow.of_batch``.

        Parameters
        ----------
        adata, indices
            As for :meth:`get_latent_representation`.
        batch_size
            As in scvi-tools; no minibatches are needed.

        Returns
        -------
        Array of shape ``(n_cells, embedding_dim)`` or ``(n_cells, n_latent_nio)``, the same row for
        all cells of a batch.
        """
        self._check_if_trained(warn=False)
        adata = self._validate_anndata(adata)
        batch = self._categories(REGISTRY_KEYS.BATCH_KEY, adata, indices)
        if self.module.embeds_batch:
            of_batch = self.module.get_embedding(REGISTRY_KEYS.BATCH_KEY).weight
        else:
            of_batch = self.module.flow.of_batch
        return of_batch.cpu().numpy()[batch]

    @torch.inference_mode()
    def predict_batch(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        soft: bool = False,
        batch_size: int | None = None,
    ) -> np.ndarray | pd.DataFrame:
        """The batch of each cell as the classifier reads it from ``z_nio``.

        Parameters
        ----------
        adata, indices, batch_size
            As for :meth:`get_latent_representation`.
        soft
            Whether to give a probability for every batch, instead of the likeliest batch.

        Returns
        -------
        Array of ``n_cells`` batch names, or a DataFrame ``(n_cells, n_batch)`` if ``soft``.
        """
        adata = self._validate_anndata(adata)
        minibatches = self._make_data_loader(adata, indices, batch_size)
        probabilities = np.concatenate(
            [
                self.module.classifier(outputs["z_nio"]).softmax(dim=-1).cpu().numpy()
                for outputs in self._run_encoder(dataloader=minibatches)
            ]
        )
        batches = np.asarray(self._state_of(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"])
        if not soft:
            return batches[probabilities.argmax(axis=1)]
        cells = adata.obs_names[positions(indices, adata.n_obs)]
        return pd.DataFrame(probabilities, index=cells, columns=batches)


def _variance(outputs: dict, code: str) -> torch.Tensor:
    posterior = outputs[f"q_{code}"]
    return torch.zeros_like(outputs[f"z_{code}"]) if posterior is None else posterior.variance
