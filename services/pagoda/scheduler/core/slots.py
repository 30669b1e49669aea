"""Small numbers for names, so that arrays can hold them."""

from __future__ import annotations


class Slots:
    """A name keeps its number while it is held; free numbers are used again."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """By number; those of free numbers are left over."""
        self._numbers: dict[str, int] = {}
        self._num_holders: list[int] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        """Names that are held."""
        return len(self._numbers)

    def hold(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            if self._free:
                number = self._free.pop()
                self.names[number] = name
            else:
                number = len(self.names)
                self.names.append(name)
                self._num_holders.append(0)
            self._numbers[name] = number
        self._num_holders[number] += 1
        return number

    def let_go(self, name: str) -> None:
        number = self._numbers[name]
        self._num_holders[number] -= 1
        if self._num_holders[number] == 0:
            del self._numbers[name]
            self._free.append(number)
