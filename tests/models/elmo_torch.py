"""ELMo in plain PyTorch for parity tests: AllenNLP's architecture with `torch.nn.LSTM(proj_size=)`.

PyTorch's LSTM clips nothing and learns two biases, of which ours is the sum.
"""

import numpy as np

from ..reference import torch

F = torch.nn.functional


class Elmo(torch.nn.Module):
    def __init__(self, config, params):
        super().__init__()
        c = config
        tensor = lambda x: torch.from_numpy(np.array(x))
        words, total = params["words"], sum(n for _, n in c.filters)
        self.characters = torch.nn.Embedding.from_pretrained(tensor(words["characters"]["embedding"]), freeze=False)
        self.filters = torch.nn.ModuleList(torch.nn.Conv1d(c.char_dim, n, width) for width, n in c.filters)
        self.highways = torch.nn.ModuleList(torch.nn.Linear(total, 2 * total) for _ in range(c.num_highway))
        self.projection = torch.nn.Linear(total, c.embed_dim)
        lstm = lambda: torch.nn.LSTM(c.embed_dim, c.hidden_dim, proj_size=c.embed_dim, batch_first=True)
        self.lstms = torch.nn.ModuleDict(
            {f"{w}_{i}": lstm() for w in ("forward", "backward") for i in range(c.num_layers)}
        )
        self.softmax = torch.nn.Linear(c.embed_dim, c.vocab_size)
        with torch.no_grad():
            for i, conv in enumerate(self.filters):
                conv.weight.copy_(tensor(words[f"filter_{i}"]["kernel"]).permute(2, 1, 0))
                conv.bias.copy_(tensor(words[f"filter_{i}"]["bias"]))
            for i, highway in enumerate(self.highways):
                highway.weight.copy_(tensor(words[f"highway_{i}"]["linear"]["kernel"]).reshape(total, -1).T)
                highway.bias.copy_(tensor(words[f"highway_{i}"]["bias"]).reshape(-1))
            self.projection.weight.copy_(tensor(words["projection"]["kernel"]).T)
            self.projection.bias.copy_(tensor(words["projection"]["bias"]))
            for name, lstm in self.lstms.items():
                p = params[name]
                lstm.weight_ih_l0.copy_(tensor(p["input"]["kernel"]).reshape(c.embed_dim, -1).T)
                lstm.weight_hh_l0.copy_(tensor(p["hidden"]).reshape(c.embed_dim, -1).T)
                lstm.bias_ih_l0.copy_(tensor(p["bias"]).reshape(-1))
                lstm.bias_hh_l0.zero_()
                lstm.weight_hr_l0.copy_(tensor(p["projection"]).T)
            self.softmax.weight.copy_(tensor(params["softmax"]["embed"]["embedding"]))
            self.softmax.bias.copy_(tensor(params["softmax"]["bias"]))

    def words(self, characters):
        x = self.characters(characters).transpose(1, 2)
        x = torch.cat([torch.relu(conv(x).amax(-1)) for conv in self.filters], -1)
        for highway in self.highways:
            gate, y = highway(x).chunk(2, -1)
            gate = torch.sigmoid(gate)
            x = gate * torch.relu(y) + (1 - gate) * x
        return self.projection(x)

    def forward(self, characters):
        """One sentence (T, C), without padding: layers (L + 1, T, 2P), logits (T, V) of both directions."""
        x = self.words(characters)
        ways = {}
        for way in ("forward", "backward"):
            ways[way] = [x if way == "forward" else x.flip(0)]
            for i in range(len(self.lstms) // 2):
                inputs = ways[way][-1]
                y = self.lstms[f"{way}_{i}"](inputs[None])[0][0]
                ways[way].append(y if i == 0 else inputs + y)
        back = [h.flip(0) for h in ways["backward"]]
        layers = torch.stack([torch.cat(pair, -1) for pair in zip(ways["forward"], back, strict=True)])
        return layers, self.softmax(ways["forward"][-1]), self.softmax(back[-1])
