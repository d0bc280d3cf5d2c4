"""From the text of a correlator to its tensors and contractions.

product  := factor+                      factor := (chain | "(" product ")") ["^" number]
chain    := tensor (("." | ":") tensor)*
tensor   := d*f ["[" index, ... "]"] ["(" [input] ";" chain, ... ")"]
"""

import re

__all__ = ["parse"]

_TOKEN = re.compile(r"\s*(?:(\w+)|(\*\*|[()\[\],;.:^*]))")
_TENSOR = re.compile(r"d*f")


def parse(spec: str) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Inputs of the tensors, and pairs that are contracted; ValueError says what is wrong."""
    reader = _Reader(spec)
    reader.product(end=None)
    reader.check_all_contracted()
    return tuple(reader.inputs), tuple(reader.contractions)


class _Reader:
    """Reads from left to right and keeps what was found."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.glued: list[bool] = []  # whether no space stands before the token
        self.tokens = self._tokenise(spec)
        self.at = 0
        self.inputs: list[str] = []
        self.words: list[str] = []  # of each tensor, for messages
        self.free: list[int] = []  # indices of each tensor that are contracted with nothing yet
        self.contractions: list[tuple[int, int]] = []
        self.named: dict[str, list[int]] = {}

    def _tokenise(self, spec: str) -> list[str]:
        tokens, position = [], 0
        text = " ".join(spec.split())
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                raise ValueError(
                    f"spec {spec!r} must hold tensors such as df(x) and . : ; , ^ ( ) [ ] between "
                    f"them, got {text[position:].strip()[0]!r}."
                )
            tokens.append(found.group(1) or found.group(2))
            self.glued.append(not found.group().startswith(" "))
            position = found.end()
        if not tokens:
            raise ValueError("spec must hold at least one tensor such as f(x), got an empty text.")
        return tokens

    def peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, *wanted: str) -> bool:
        """Whether the next token is one of `wanted`; it is then passed."""
        if self.peek() in wanted:
            self.at += 1
            return True
        return False

    def need(self, token: str, where: str) -> None:
        if not self.take(token):
            raise ValueError(
                f"spec {self.spec!r} must have {token!r} {where}, got {self.peek() or 'its end'!r}."
            )

    def product(self, end: str | None) -> None:
        while self.peek() not in (end, None):
            self.factor()
            self.take("*")

    def factor(self) -> None:
        start = self.at
        self._factor_once()
        if not self.take("^", "**"):
            return
        power = self.peek()
        if power is None or not power.isdigit() or int(power) < 1:
            raise ValueError(f"spec {self.spec!r} must have a power of at least 1, got {power!r}.")
        after = self.at + 1
        for _ in range(int(power) - 1):
            self.at = start
            self._factor_once()
        self.at = after

    def _factor_once(self) -> None:
        if self.take("("):
            if self.peek() == ")":
                raise ValueError(f"spec {self.spec!r} must hold a tensor between ( and ).")
            self.product(end=")")
            self.need(")", "at the end of the product that ( began")
            return
        chain = self.chain()
        first, last = chain[0], chain[-1]
        if len(chain) > 1 and first != last and self.free[first] == self.free[last] == 1:
            self.contract(first, last)  # ddf.ddf is the trace of a product of matrices

    def chain(self) -> list[int]:
        tensors = [self.tensor()]
        while self.peek() in (".", ":"):
            dots = 1 if self.tokens[self.at] == "." else 2
            self.at += 1
            tensors.append(self.tensor())
            for _ in range(dots):
                self.contract(tensors[-2], tensors[-1])
        return tensors

    def tensor(self) -> int:
        word = self.peek()
        if word is None or not _TENSOR.fullmatch(word):
            raise ValueError(
                f"spec {self.spec!r} must have a tensor, f, df, ddf, ..., where "
                f"{word or 'its end'!r} stands."
            )
        self.at += 1
        number = len(self.inputs)
        self.inputs.append("x")
        self.words.append(word)
        self.free.append(len(word) - 1)
        if self.take("["):
            self.indices(number)
        if self.at < len(self.tokens) and self.glued[self.at] and self.take("("):
            self.arguments(number)
        self.words[number] += f"({self.inputs[number]})"
        return number

    def indices(self, number: int) -> None:
        while not self.take("]"):
            name = self.peek()
            if name is None or not name.isidentifier():
                raise ValueError(f"spec {self.spec!r} must have names of indices between [ and ].")
            self.at += 1
            self.take(",")
            self.named.setdefault(name, []).append(number)
            self.spend(number, f"the index {name!r}")

    def arguments(self, number: int) -> None:
        """The input and the vectors put into the tensor."""
        if self.peek() is not None and self.peek().isidentifier():
            if not _TENSOR.fullmatch(self.peek()):
                self.inputs[number] = self.tokens[self.at]
                self.at += 1
                if self.peek() not in (";", ","):
                    self.need(")", f"after the input {self.inputs[number]!r}")
                    return
                self.at += 1
            while True:
                chain = self.chain()
                open_ends = [tensor for tensor in chain if self.free[tensor]]
                if [self.free[tensor] for tensor in open_ends] != [1]:
                    raise ValueError(
                        f"spec {self.spec!r} must put vectors into {self.words[number]}, each with "
                        f"one index left; {'.'.join(self.words[t] for t in chain)} has "
                        f"{sum(self.free[tensor] for tensor in open_ends)}."
                    )
                self.contract(number, open_ends[0])
                if not self.take(",", ";"):
                    break
        self.need(")", f"at the end of {self.words[number]}(")

    def contract(self, i: int, j: int) -> None:
        self.spend(i, f"a contraction with {self.words[j]}")
        self.spend(j, f"a contraction with {self.words[i]}")
        self.contractions.append((i, j))

    def spend(self, number: int, on: str) -> None:
        if self.free[number] == 0:
            order = self.words[number].split("(")[0].count("d")
            raise ValueError(
                f"spec {self.spec!r}: {self.words[number]} has {order} "
                f"{'index' if order == 1 else 'indices'}, and none is left for {on}."
            )
        self.free[number] -= 1

    def check_all_contracted(self) -> None:
        for name, tensors in self.named.items():
            if len(tensors) != 2 or tensors[0] == tensors[1]:
                where = ", ".join(self.words[t] for t in tensors)
                raise ValueError(
                    f"spec {self.spec!r}: the index {name!r} must occur exactly twice, on two "
                    f"different tensors, got it on {where}."
                )
            self.contractions.append((tensors[0], tensors[1]))
        for number, left in enumerate(self.free):
            if left:
                raise ValueError(
                    f"spec {self.spec!r}: {self.words[number]} has {left} "
                    f"{'index' if left == 1 else 'indices'} contracted with nothing; every index "
                    "must be paired with one of another tensor."
                )
