"""A scripted language model, for testing code around a model: `from scripted import Scripted`."""

from didact.types import Likelihood


class Scripted:
    """Over plain text: `write(prompt, i)` is its i-th answer to a prompt, `logp(prompt, completion)` in nats,
    `tops(prompt)` the log-probs of the likeliest next tokens. It has the capabilities of the functions passed, and
    records its requests in `asked`."""

    name, context = "scripted", 1000
    __hash__ = None  # a user's may be a plain dataclass

    def __init__(self, write=None, logp=None, tops=None):
        self.write, self.logp, self.tops, self.asked, self.drawn = write, logp, tops, [], {}
        functions = {"generate": write, "score": logp, "top_logprobs": tops}
        self.capabilities = frozenset(name for name, function in functions.items() if function)

    def tokens(self, texts):
        return [len(t.split()) for t in texts]

    def score(self, pairs):
        self.asked += pairs
        return [Likelihood(self.logp(p, c), len(c.split())) for p, c in pairs]

    def top_logprobs(self, prompts, k=20):
        return [self.tops(p) for p in prompts]

    def generate(self, prompts, max_new_tokens=64, *, n=1, **how):
        self.asked += prompts
        out = []
        for prompt in prompts:
            first = self.drawn.get(prompt, 0)
            self.drawn[prompt] = first + n
            out.append([self.write(prompt, first + i) for i in range(n)])
        return out
