"""Parts of a module that files of an earlier version lack."""

from __future__ import annotations

from torch import nn


class AddedLater(nn.Module):
    """A part that the files of an earlier version lack: they load without it."""

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        own = dict(self.named_buffers()) | dict(self.named_parameters())
        for name, values in own.items():
            state_dict.setdefault(prefix + name, values)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
