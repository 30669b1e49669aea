"""Word pools shared by the task generators.

Words are short and common so that a vocabulary of about 1,280 tokens holds each of them as one token. Pools that
must not be confused with each other (names, cities, nouns) are disjoint.
"""

NAMES: tuple[str, ...] = tuple(
    (
        "Ada Alan Amir Anna Ben Cara Chen Clara Dan Dora Elena Emma Eric Eva Felix Finn Grace Hana Hugo Ida "
        "Igor Iris Ivan Jack Jane Jonas Julia Karl Kate Kim Lara Leo Lena Liam Lina Lucy Mara Marco Maria Max "
        "Maya Milo Mina Nadia Nina Noah Nora Olga Omar Oscar Paul Petra Rosa Ruth Sam Sara Simon Sofia Tara Theo "
        "Tom Vera Victor Zoe"
    ).split()
)

CITIES: tuple[str, ...] = tuple(
    (
        "Athens Berlin Bern Boston Cairo Dakar Delhi Dublin Geneva Hanoi Kyoto Lagos Lima Lisbon London Lyon "
        "Madrid Malmo Miami Milan Nairobi Oslo Paris Porto Prague Quito Riga Rome Seoul Tokyo Turin Vienna Warsaw"
    ).split()
)

NOUNS: tuple[str, ...] = tuple(
    (
        "apple arrow ball bank basket bear bell bird boat book bottle bread bridge brush cake camera candle car "
        "card cat chair clock cloud coat coin corn cup desk dog door dress drum eagle egg engine farm feather fire "
        "fish flag flower forest fork fox frog garden gate glass goat grape hammer hat hill honey horse house "
        "island jacket jar key kite knife ladder lake lamp leaf lemon letter lion map mirror moon mouse nest net "
        "ocean onion orange owl paper pear pen piano pig pillow pipe plane plate pond potato queen rabbit radio rain "
        "ring river road rock roof rope rose sand school sea shell ship shirt shoe silver snow spoon star stone "
        "storm sugar sun table tea tent tiger tower train tree truck turtle valley violin wagon wall watch water "
        "whale wheel wind window wolf wood zebra"
    ).split()
)

ADJECTIVES: tuple[str, ...] = tuple(
    "old young small large quiet bright dark warm cold soft heavy empty happy slow early blue red white".split()
)

VERBS: tuple[str, ...] = tuple(
    "finds sees follows carries moves passes keeps likes holds leaves meets paints opens hides".split()
)

PLACES: tuple[str, ...] = tuple(
    "near the harbor|in the market|on the street|by the station|at home|behind the church|in the village|"
    "across the field|in the morning|at night|every summer|after lunch|before winter|without a sound|once more|"
    "for an hour".split("|")
)

ITEMS: tuple[str, ...] = tuple(
    "apples bells books boxes cards chairs clocks coats cups desks eggs flags hats keys lamps maps pens plates "
    "ropes rings shirts shoes spoons tables tents".split()
)

# Multi-byte characters, so that copying also exercises UTF-8 sequences that span several tokens.
SYMBOLS: tuple[str, ...] = tuple("🙂 🚀 🌍 🎉 🐍 ❤ ✓ é ü ñ ß λ π 中 日 語 Ж".split())
