"""What the simulated model says: made-up text, in words."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import chain, cycle, islice

from app.models import excerpt
from app.models.knobs import Knobs

# A word with the white space before it.
WORD = re.compile(r"\s*\S+")

# What asks for a story: the word itself, however it is asked for. Not "history", not "storyboard".
ASKS_FOR_STORY = re.compile(r"\bstory\b", re.IGNORECASE)


class Words:
    """The words of a reply: the first ones are its own, the others its template's, 2 KiB that no reply copies."""

    def __init__(self, own: list[str], others: list[str]) -> None:
        self._own = own
        self._others = others

    def __len__(self) -> int:
        return len(self._own) + len(self._others)

    def __iter__(self) -> Iterator[str]:
        return chain(self._own, self._others)


class Template:
    """A text with fields, split into words once; the replies made of it share the strings."""

    def __init__(self, text: str) -> None:
        words = WORD.findall(text)
        beyond = 1 + max(at for at, word in enumerate(words) if "{" in word)
        self._with_fields, self._others = words[:beyond], words[beyond:]

    def fill(self, **values: object) -> Words:
        own: list[str] = []
        for word in self._with_fields:
            # A value may bring white space, and braces that are no fields.
            own += WORD.findall(word.format(**values)) if "{" in word else (word,)
        return Words(own, self._others)


REPLIES = [
    Template(
        'You wrote: "{quote}". This is reply {turn} of our chat. I am a simulated model, so every word here is'
        " made up, but each one comes to you in an event of its own."
    ),
    Template(
        'About "{quote}": that is a good thing to ask a server that has no model yet. This is reply {turn} in this'
        " chat, streamed word by word and kept in PostgreSQL before you are told that it is done."
    ),
    Template(
        'Thank you for "{quote}". Watch the gaps between these words: each takes ten to thirty milliseconds unless'
        " something between us holds them back. It is reply {turn} of this chat."
    ),
    Template(
        'So, "{quote}"! Reply {turn} of our chat says nothing wise, but it says it steadily: a real model will'
        " one day stand in this very place, and nothing around it will need to change."
    ),
]

STORY = Template(
    'You asked for a story: "{quote}". Here is reply {turn} of our chat.\n\n'
    "A lighthouse keeper on a small grey island had one task besides the lamp: every evening she read the"
    " weather aloud into an old radio, word by word, slowly, so that the boats could write it down. Nobody ever"
    " answered. Some nights she wondered whether anyone was listening, and whether it would matter if she"
    " stopped halfway through a sentence and went to bed.\n\n"
    "One autumn a storm took the mast of the radio while she was speaking. She did not notice. She read on to"
    " the end, signed off with the hour, and wrote the report in her book as she always did, down to the last"
    " word that she had said.\n\n"
    "In spring a fishing boat put in with a basket of eels and a question. The skipper had heard the first half"
    " of a report in October, up to the words the wind will turn, and then nothing. He had stayed in harbour"
    " because of them, and he wanted to know how it went on. She opened the book, found the page, put her"
    " finger on the very next word, and read him the rest.\n\n"
    "After that she never wondered again. She mended the mast, and she kept the book."
)


def compose(asked: Sequence[str], rng: random.Random) -> Words:
    """Return the words of a reply to the last of `asked`: 20 to 60, or a story of 150 or more."""
    template = STORY if ASKS_FOR_STORY.search(asked[-1]) else rng.choice(REPLIES)
    return template.fill(quote=excerpt(asked[-1], words=12, chars=80), turn=len(asked))


# What clients show in ways of their own.
TEXTS = {
    "markdown": """\
# What the keeper wrote down

The lamp *burns*, the radio **works**, and `gale` is a word that she ~~avoids~~ says only when it comes.

## Rounds

1. Wind the clock.
2. Trim the lamp:
   - wick, then glass
   - oil up to the mark
3. Read the weather aloud.

- [x] mast mended
- [ ] book bound

| hour | wind | sea |
|-----:|:----:|-----|
| 06 | NW 4 | slight |
| 18 | W 7 | **rough** |

> Whoever hears half a report
> stays in harbour.

```python
def report(hour: int) -> str:
    return f"{hour:02}:00, wind \\"NW\\" | sea < 2 m"
```

### What to read on

See [the next page](https://example.com/reports?year=2026&page=2#wind), or <https://example.com>.
This stays text: <img src=x onerror=alert(1)> and [a link that is none](javascript:alert(1)).

---

Signed off at six.""",
    "unicode": (
        "Letters of two parts: e\u0301, n\u0303, a\u030a, and Z\u0351\u036b\u0343 with three marks. Signs of"
        " several: \U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 a family,"
        " \U0001f44d\U0001f3fd a thumb, \U0001f3f4\u200d\u2620\ufe0f a pirate, \U0001f1e8\U0001f1ed a flag,"
        " 1\ufe0f\u20e3 a key. From right to left: \u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd,"
        " \u0645\u0631\u062d\u0628\u0627 \u0628\u0643\u0645,"
        " and (\u0661\u0662\u0663) within. Without blanks: 灯塔的看守人每晚朗读天气。"
        " 灯台守は毎晩、天気を読み上げる。 등대지기는 매일 저녁 हिन्दी ภาษาไทย."
        " Beyond sixteen bits: \U0001d518\U0001d52b\U0001d526 𠮷. Other line ends:\u2028here\u2029and\u0085there."
        " Unseen: \u200bzero\u200bwidth, \u00adsoft, \u2068isolated\u2069, \ufeffmark."
    ),
    "code": """\
Three ways to wait for a line.

```python
import asyncio


async def lines(reader: asyncio.StreamReader) -> None:
\twhile line := await reader.readline():
\t\tprint(line.decode("utf-8", "replace").rstrip("\\r\\n"), end="\\n\\n")
```

```js
const text = `a ${['template', "with 'quotes'"].join(' ')}`; // and a `tick` in a comment
if (1 < 2 && 3 > 2) document.title = text.replace(/[<>&"]/g, (c) => `&#${c.charCodeAt(0)};`);
```

```sh
curl -sN "$URL" | while IFS= read -r line; do printf '%s\\n' "${line#data: }"; done # past where a window ends
```

Indented, and without a language:

    \\begin{pre} $x^2$ & <b>not bold</b> \\end{pre}""",
    "long-line": (
        "One line without an end: the boats went out at four and the wind came at five and nobody had heard the"
        f" report because the mast was down, {'aeiou' * 400} was all that the radio said, and"
        f" https://example.com/{'report/' * 60} is where it is kept, with no break in it, so that whoever shows it"
        " breaks it or scrolls."
    ),
}


def seeded(seed: str, asked: Sequence[str]) -> random.Random:
    """Return what decides on the answer to a conversation: with the same seed, on the same one."""
    return random.Random("\0".join([seed, *asked]))  # noqa: S311


def told(asked: Sequence[str], rng: random.Random, knobs: Knobs) -> Iterator[str]:
    """Yield the words that the knobs ask for: of a text of theirs, or of a reply; again and again for more."""
    words = WORD.findall(TEXTS[knobs.text]) if knobs.text else list(compose(asked, rng))
    if knobs.words is None and not knobs.endless:
        return iter(words)
    again = chain(words, cycle(["\n\n" + words[0], *words[1:]]))
    return again if knobs.endless else islice(again, knobs.words)
