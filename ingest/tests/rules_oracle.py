"""Compares the figures of texts with datatrove's own filters, and with OBELICS' definitions.

    python -m venv target/oracle && target/oracle/bin/pip install datatrove==0.10.1 spacy==3.8.18
    cargo build --release -p flamingo-ingest --example text_figures
    target/oracle/bin/python ingest/tests/rules_oracle.py target/release/examples/text_figures TEXTS.jsonl...

Each line of a file is a JSON string, or an object of a truth file with `blocks`. Every filter is asked
twice for each text and figure: with the limit just above our figure it must keep the text, with the
limit just below it must drop it. Words are split as ours in both, since datatrove leaves that to a
tokenizer; with its own tokenizer (spaCy) the verdicts at the paper's limits are compared at the end.
"""

import json
import math
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import datatrove.pipeline.filters.c4_filters as c4
import datatrove.pipeline.filters.fineweb_quality_filter as fineweb
import datatrove.pipeline.filters.gopher_quality_filter as quality
import datatrove.pipeline.filters.gopher_repetition_filter as repetition
from datatrove.data import Document
from datatrove.utils.text import split_into_sentences, split_into_words

OURS = re.compile(r"(?:(?<=\w)['’])?\w+(?:(?<=[0-9])[.,](?=[0-9])\w+)*|([^\w\s])\1*")
OFF = dict(min_doc_words=None, max_doc_words=None, min_avg_word_length=None, max_avg_word_length=None,
           max_symbol_word_ratio=None, max_bullet_lines_ratio=None, max_ellipsis_lines_ratio=None,
           max_non_alpha_words_ratio=None, min_stop_words=None)
NO_REPETITION = dict(dup_line_frac=None, dup_para_frac=None, dup_line_char_frac=None,
                     dup_para_char_frac=None, top_n_grams=(), dup_n_grams=())
NO_FINEWEB = dict(line_punct_thr=-1, short_line_thr=2, char_duplicates_ratio=2, new_line_ratio=1e9)

# Figure -> (filter that keeps below this limit).
MAX = {
    "gopher_words": lambda v: quality.GopherQualityFilter(**{**OFF, "max_doc_words": v}),
    "word_length": lambda v: quality.GopherQualityFilter(**{**OFF, "max_avg_word_length": v}),
    "bullet_lines": lambda v: quality.GopherQualityFilter(**{**OFF, "max_bullet_lines_ratio": v}),
    "ellipsis_lines": lambda v: quality.GopherQualityFilter(**{**OFF, "max_ellipsis_lines_ratio": v}),
    "duplicate_paragraphs": lambda v: repetition.GopherRepetitionFilter(**{**NO_REPETITION, "dup_para_frac": v}),
    "duplicate_paragraph_chars": lambda v: repetition.GopherRepetitionFilter(**{**NO_REPETITION, "dup_para_char_frac": v}),
    "duplicate_lines": lambda v: repetition.GopherRepetitionFilter(**{**NO_REPETITION, "dup_line_frac": v}),
    "duplicate_line_chars": lambda v: repetition.GopherRepetitionFilter(**{**NO_REPETITION, "dup_line_char_frac": v}),
    "short_lines": lambda v: fineweb.FineWebQualityFilter(**{**NO_FINEWEB, "short_line_thr": v}),
    "duplicate_chars": lambda v: fineweb.FineWebQualityFilter(**{**NO_FINEWEB, "char_duplicates_ratio": v}),
    "newlines": lambda v: fineweb.FineWebQualityFilter(**{**NO_FINEWEB, "new_line_ratio": v}),
}
for n in (2, 3, 4):
    MAX[f"top_{n}_gram"] = lambda v, n=n: repetition.GopherRepetitionFilter(**{**NO_REPETITION, "top_n_grams": ((n, v),)})
for n in range(5, 11):
    MAX[f"duplicate_{n}_gram"] = lambda v, n=n: repetition.GopherRepetitionFilter(**{**NO_REPETITION, "dup_n_grams": ((n, v),)})
# Figure -> (filter that keeps above this limit).
MIN = {
    "gopher_words": lambda v: quality.GopherQualityFilter(**{**OFF, "min_doc_words": v}),
    "word_length": lambda v: quality.GopherQualityFilter(**{**OFF, "min_avg_word_length": v}),
    "alphabetic_words": lambda v: quality.GopherQualityFilter(**{**OFF, "max_non_alpha_words_ratio": v}),
    "gopher_stop_words": lambda v: quality.GopherQualityFilter(**{**OFF, "min_stop_words": v}),
    "line_punctuation": lambda v: fineweb.FineWebQualityFilter(**{**NO_FINEWEB, "line_punct_thr": v}),
}


def keeps(text_filter, text):
    verdict = text_filter.filter(Document(text=text, id="0"))
    return verdict if isinstance(verdict, bool) else verdict[0]


def obelics(text):
    """OBELICS' figures by their definitions, in the plainest way."""
    strip = "".join({c for c in text if not c.isalpha()})
    words = [word.lower().strip(strip) for word in text.split()]
    words = [word for word in words if word]
    grams = Counter(" ".join(words[i:i + 5]) for i in range(len(words) - 4))
    chars = Counter(text[i:i + 10] for i in range(len(text) - 9))
    top = sorted(chars.values(), reverse=True)
    n_top = min(int(math.sqrt(len(top))), sum(count > 1 for count in top))
    parts = re.findall(r"[\w']+|[,;:?!.]", text)
    share = lambda part, whole: part / whole if whole else 0.0
    return {
        "words": len(words),
        "word_repetition": share(sum(n for n in grams.values() if n > 1), sum(grams.values())),
        "char_repetition": share(sum(top[:n_top]), sum(top)),
        "special_chars": share(sum(not c.isalpha() for c in text), len(text)),
        "punctuation": share(sum(part in ",;:?!." for part in parts), len(parts)),
    }


def c4_lines(text):
    """What C4's filter keeps, asked line by line."""
    lines = [line for line in text.splitlines() if line.strip()]
    off = dict(min_num_sentences=-1, filter_lorem_ipsum=False, filter_curly_bracket=False)
    kept = 0
    for line in lines:
        document = Document(text=line, id="0")
        c4.C4QualityFilter(**off).filter(document)
        kept += bool(document.text)
    return kept / len(lines) if lines else 0.0


def texts(path):
    for line in open(path):
        value = json.loads(line)
        if isinstance(value, dict):
            value = "\n\n".join(b["text"] for b in value["blocks"] if b["type"] != "image")
        if value.strip():
            yield value


def made_up():
    sentence = "The cat sat on the mat, and it was happy... "
    yield sentence * 50
    yield "\n".join(["- a point of a list", "• another…", "Same line again.", "Same line again."] * 9)
    yield "# # # x ### y" * 30
    yield "one\n\ntwo\n\none\n\n\n\ntwo\nthree {x}\nlorem ipsum dolor sit.\nPlease use Javascript now."
    yield "日本語の文です。これも文です。" * 20


def main():
    program, *paths = sys.argv[1:]
    corpus = [text for path in paths for text in texts(path)] + list(made_up())
    lines = "".join(json.dumps(text) + "\n" for text in corpus)
    printed = subprocess.run([program], input=lines, capture_output=True, text=True, check=True).stdout
    figures = [json.loads(line) for line in printed.splitlines()]
    assert len(figures) == len(corpus)

    own_words = split_into_words
    our_words = lambda text, _=None: [m.group(0) for m in OURS.finditer(text)]
    for module in (quality, repetition, fineweb):
        module.split_into_words = our_words
    wrong, n, n_other = [], 0, 0
    step = lambda v: max(abs(v) * 1e-5, 1e-6)
    for i, (text, figure) in enumerate(zip(corpus, figures)):
        # Python and Unicode's property `Alphabetic` differ in these: vowel signs, Roman numerals.
        if any(unicodedata.category(c) in ("Mn", "Mc", "Nl") or "Ⓐ" <= c <= "ⓩ" for c in text):
            n_other += 1
            continue
        for table, sign in ((MAX, 1), (MIN, -1)):
            for name, make in table.items():
                v = figure[name]
                inside, outside = v + sign * step(v), v - sign * step(v)
                # A limit of 0 switches a rule off in datatrove.
                if inside > 0 and not keeps(make(inside), text):
                    wrong.append((i, name, v, "dropped within the limit"))
                if outside > 0 and keeps(make(outside), text):
                    wrong.append((i, name, v, "kept beyond the limit"))
                n += 2
        for name, v in {**obelics(text), "c4_lines": c4_lines(text)}.items():
            n += 1
            if abs(figure[name] - v) > step(v):
                wrong.append((i, name, figure[name], f"expected {v}"))
    for row in wrong[:20]:
        print("wrong:", *row, repr(corpus[row[0]][:60]))
    print(f"{len(corpus) - n_other} texts, {n} comparisons, {len(wrong)} wrong; "
          f"{n_other} texts left out since they have letters that Python calls none")

    for module in (quality, repetition, fineweb):
        module.split_into_words = own_words
    ends = {"gopher_words": (50, 100000), "word_length": (3, 10), "bullet_lines": (0, .9),
            "ellipsis_lines": (0, .3), "alphabetic_words": (.8, 2), "gopher_stop_words": (2, 99),
            "hashes": (0, .1), "ellipses": (0, .1)}
    ends |= dict(zip([f"top_{k}_gram" for k in (2, 3, 4)], [(0, .2), (0, .18), (0, .16)]))
    ends |= {f"duplicate_{k}_gram": (0, .2 - .01 * k) for k in range(5, 11)}
    ends |= {"duplicate_lines": (0, .3), "duplicate_paragraphs": (0, .3),
             "duplicate_line_chars": (0, .2), "duplicate_paragraph_chars": (0, .2)}
    same = kept = 0
    sentences = []
    for text, figure in zip(corpus, figures):
        theirs = keeps(quality.GopherQualityFilter(), text) and keeps(repetition.GopherRepetitionFilter(), text)
        ours = all(low <= figure[name] <= high + 1e-9 for name, (low, high) in ends.items())
        same += theirs == ours
        kept += theirs
        if "\n" not in text.strip():
            continue
        count = sum(len(split_into_sentences(line)) for line in text.splitlines() if line.strip())
        sentences.append(figure["sentences"] / count)
    sentences.sort()
    print(f"with spaCy's words: {same} of {len(corpus)} verdicts of Gopher's rules are the same ({kept} kept)")
    print(f"sentences for each of spaCy's: median {sentences[len(sentences) // 2]:.3f}, "
          f"5 % {sentences[len(sentences) // 20]:.3f}, 95 % {sentences[-1 - len(sentences) // 20]:.3f}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
