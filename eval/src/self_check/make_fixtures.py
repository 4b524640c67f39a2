"""Makes fixtures.json: made-up predictions and annotations with the values of the official tools.

Run once, with pycocoevalcap 1.2 (and Java), scikit-learn 1.9.1, NLTK 3.10.4 with WordNet 3.0 as its corpus `wordnet`,
and vqa_metric.py of open_flamingo 2.0.1 in the folder OPEN_FLAMINGO:

    python make_fixtures.py OPEN_FLAMINGO > fixtures.json
"""
import base64
import io
import json
import math
import random
import sys
import warnings
from collections import defaultdict

import numpy as np

warnings.simplefilter("ignore")
random.seed(7)
files, checks, word_lists = {}, [], []


def check(metrics, tool, annotations, predictions, values, tolerance=1e-9):
    checks.append(dict(metrics=metrics, tool=tool, annotations=annotations, predictions=predictions,
                       values=values, tolerance=tolerance))


def put(name, value):
    files[name] = value if isinstance(value, str) else json.dumps(value)
    return name


def captions():
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references = {
        1: ["A man doesn't wait for the bus.", "The man (in red) waits at a bus stop.", "a man waiting"],
        2: ["Two dogs run over green grass", "Two dogs are running, side by side.", "dogs playing"],
        3: ["A woman's hat -- bright red -- on a chair", "A red hat lies on the chair ."],
        4: ["It cannot fly!", "the bird can not fly", "A bird that is unable to fly...", "bird"],
        5: ["Call 800 643 2112 at 4:38", "A sign with a phone number", "sign reads: 22 3/4 street"],
        6: ["AT&T store on U.S. 1", "A shop; people outside", "People in front of a shop at 5 p.m."],
        7: ["two two two two", "Two cats and two cats"],
        8: ["An old-fashioned his/her clock", "the clock's face", "A clock"],
    }
    said = {
        1: "a man waits for the bus", 2: "two dogs run, side by side", 3: "red hat on a chair (red)",
        4: "it can't fly", 5: "a sign with 800 643 2112", 6: "at&t store, people outside.",
        7: "two two cats", 8: "",
    }
    rows = [dict(image_id=i, id=10 * i + j, caption=c) for i, cs in references.items() for j, c in enumerate(cs)]
    truth = put("captions.json", dict(images=[], annotations=rows))
    mine = put("captions_said.json", [dict(image_id=i, caption=c) for i, c in said.items()])
    as_is = ({i: cs for i, cs in references.items()}, {i: [c] for i, c in said.items()})
    tokenizer = PTBTokenizer()
    rows = lambda table: {i: [dict(caption=c) for c in cs] for i, cs in table.items()}
    tokens = (tokenizer.tokenize(rows(as_is[0])), tokenizer.tokenize(rows(as_is[1])))
    for rule, (gts, res) in (("coco", tokens), ("no-ptb", as_is)):
        bleu, _ = Bleu(4).compute_score(gts, res, verbose=0)
        values = {f"bleu-{n + 1}:{rule}": b for n, b in enumerate(bleu)}
        values[f"rouge:{rule}"] = float(Rouge().compute_score(gts, res)[0])
        values[f"cider:{rule}"] = float(Cider().compute_score(gts, res)[0])
        check([f"{m}:{rule}" for m in ("bleu", "rouge", "cider")], "pycocoevalcap 1.2", truth, mine, values)
    values = {"meteor:coco": Meteor().compute_score(*tokens)[0]}
    check(["meteor:coco"], "pycocoevalcap 1.2, METEOR 1.5", truth, mine, values)
    pairs = [[c, t] for i in references for c, t in zip(references[i], tokens[0][i])]
    word_lists.append(dict(name="ptb tokens", tool="CoreNLP 3.4.1 as in pycocoevalcap 1.2", pairs=pairs))


def answers(open_flamingo):
    sys.path.insert(0, open_flamingo)
    import vqa_metric

    normaliser = vqa_metric.VQAEval.__new__(vqa_metric.VQAEval)
    vqa_metric.VQAEval.__init__(normaliser, None, None)
    normal = lambda text: normaliser.processDigitArticle(normaliser.processPunctuation(text))
    clean = lambda text: text.replace("\n", " ").replace("\t", " ").strip()
    questions = [
        (11, 1, ["Two"] * 10, "two"), (12, 1, ["red"] * 3 + ["Red."] * 3 + ["blue"] * 4, "the red"),
        (13, 2, ["1,000"] * 2 + ["1000"] * 7 + ["none"], "1,000"), (14, 3, ["dont know"] * 5 + ["no"] * 5, "Don't know"),
        (15, 3, ["yes", "no"] * 5, "yes"), (16, 4, ["a-b"] * 4 + ["a b"] * 6, "a-b"),
        (17, 5, ["3.5 oz."] * 9 + ["4"], "3.5 oz"), (18, 6, ["left"] * 2 + ["right"] * 8, "left"),
    ]

    def leave_one_out(said, people, others):
        return sum(min(1, sum(a["answer"] == said for a in others(i, people)) / 3) for i in range(10)) / 10

    by_dict = lambda i, people: [a for a in people if a != people[i]]
    by_index = lambda i, people: people[:i] + people[i + 1:]
    scores = defaultdict(list)
    rows = []
    for question, image, given, said in questions:
        people = [dict(answer=clean(a), answer_confidence="yes", answer_id=i + 1) for i, a in enumerate(given)]
        rows.append(dict(question_id=question, image_id=image, answers=people))
        said = clean(said)
        normalised = [dict(a, answer=normal(a["answer"])) for a in people]
        always = leave_one_out(normal(said), normalised, by_dict)
        scores["vqa:open-flamingo"].append(always)
        agreed = len({a["answer"] for a in people}) == 1
        scores["vqa:official"].append(leave_one_out(said, people, by_dict) if agreed else always)
        scores["vqa:vizwiz-api"].append(leave_one_out(normal(said), people, by_index))
    truth = put("answers.json", dict(annotations=rows))
    mine = put("answers_said.json", [dict(question_id=q, answer=said) for q, _, _, said in questions])
    values = {name: sum(s) / len(s) for name, s in scores.items()}
    check(list(values), "formulas on the normaliser of open_flamingo 2.0.1", truth, mine, values)
    texts = sorted({t for q in questions for t in q[2] + [q[3]]} | {"The U.S.A. is a.b", "somebody'd", "x ; y, z", "ten-2"})
    word_lists.append(dict(name="vqa normaliser", tool="open_flamingo 2.0.1", pairs=[[t, normal(t)] for t in texts]))


def next_qa():
    from nltk.corpus import wordnet
    from nltk.tokenize.destructive import NLTKWordTokenizer

    cut = NLTKWordTokenizer().tokenize
    stop = {"the", "a", "to", "is", "in", "it", "on", "with", "of", "and", "them"}

    def similarity(a, b, alpha):
        if a == b:
            return 1.0
        a, b = wordnet.synsets(a), wordnet.synsets(b)
        if not a or not b:
            return 0.0
        found = a[0].wup_similarity(b[0]) or 0.0
        return 0.1 * found if found < alpha else found

    def product(a, b, alpha):
        best = [max([similarity(x, y, alpha) for y in b], default=0) for x in a]
        best = [x for x in best if x > 0]
        return math.prod(best) if best else 0.0

    def wups(a, b, alpha):
        a, b = cut(a), cut(b)
        return min(product(a, b, alpha), product(b, a, alpha))

    questions = [
        (5, 1, "CW", "to get the toy", "wants the toy"), (5, 2, "CH", "holds it with hands", "carries it"),
        (5, 3, "DC", "two", "two"), (6, 1, "DB", "yes", "no"), (6, 2, "DL", "park", "a garden"),
        (6, 3, "DO", "dog", "the puppies"), (7, 1, "TN", "walks away", "running"), (7, 2, "TC", "smiling", "laugh"),
        (7, 3, "TP", "jumped", "jump off the cat's sofa"), (8, 1, "CW", "happy", "geese flew"),
    ]
    head = "video,frame_count,width,height,question,answer,qid,type\n"
    truth = put("open.csv", head + "".join(f"{v},1,1,1,q,{a},{q},{t}\n" for v, q, t, a, _ in questions))
    said = defaultdict(dict)
    for v, q, _, _, p in questions:
        said[str(v)][str(q)] = p
    mine = put("open_said.json", said)
    values = {}
    for rule in ("raw", "stop"):
        ready = lambda s: s if rule == "raw" else " ".join(w for w in s.lower().split() if w not in stop)
        for name, alpha in (("wups0", 0.0), ("wups9", 0.9)):
            scores = defaultdict(list)
            for _, _, t, a, p in questions:
                a, p, t = ready(a), ready(p), "TN" if t == "TP" else t
                score = float(a == p) if t in ("DB", "DC") else wups(p, a, alpha)
                for group in ("", "/" + t[0], "/" + t):
                    scores[group].append(score)
            values |= {f"{name}:{rule}{g}": sum(s) / len(s) for g, s in scores.items()}
    check(["wups0:raw", "wups0:stop", "wups9:raw", "wups9:stop"], "metrics.py of NExT-OE on NLTK 3.10.4", truth, mine, values)
    pairs = [("dog", "cat"), ("geese", "goose"), ("run", "walk"), ("happy", "sad"), ("quickly", "car"), ("made", "build"),
             ("better", "good"), ("restaurants", "house"), ("xqzt", "dog"), ("teeth", "arm"), ("entity", "be"), ("men", "women")]
    word_lists.append(dict(name="wup similarity", tool="NLTK 3.10.4", pairs=[[a, b, similarity(a, b, 0.0)] for a, b in pairs]))
    texts = ["they can't, won't and don't", "it costs $3.88 (about 3,36).", "'twas the dog's toy.", "gonna \"go\" -- now?"]
    word_lists.append(dict(name="nltk words", tool="NLTK 3.10.4", pairs=[[t, " ".join(cut(t))] for t in texts]))


def choices():
    kinds = ["CW", "CH", "TN", "TC", "TP", "DC", "DL", "DO"]
    rows = [(v, q, random.choice(kinds), random.randrange(5), random.randrange(3)) for v in range(9) for q in range(4)]
    head = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    truth = put("choice.csv", head + "".join(f"{v},1,1,1,q,{a},{q},{t},a,b,c,d,e\n" for v, q, t, a, _ in rows))
    mine = put("choice_said.json", {f"{v}_{q}": dict(prediction=p, answer=a) for v, q, _, a, p in rows})
    scores = defaultdict(list)
    for _, _, t, a, p in rows:
        t = "TN" if t == "TP" else t
        for group in ("", "/" + t[0], "/" + t):
            scores[group].append(float(a == p))
    values = {f"next-qa:mc{g}": sum(s) / len(s) for g, s in scores.items()}
    check(["next-qa:mc"], "eval_mc.py of NExT-QA, its formula", truth, mine, values)


def labels():
    from sklearn.metrics import roc_auc_score

    labels = [random.randrange(2) for _ in range(40)]
    scores = [round(random.random() * 0.6 + 0.3 * y, 1) for y in labels]
    truth = put("labels.jsonl", "".join(json.dumps(dict(id=i, img="", label=y)) + "\n" for i, y in enumerate(labels)))
    mine = put("labels_said.json", [dict(id=i, score=s) for i, s in enumerate(scores)])
    check(["roc_auc"], "scikit-learn 1.9.1", truth, mine, {"roc_auc": float(roc_auc_score(labels, scores))})


def clips():
    from sklearn.metrics import average_precision_score

    actions = [(v, n) for v in ("cut", "wash", "drill") for n in ("phone", "apple", "hat")]
    rows = [(f"v{random.randrange(12)}", random.randrange(9), random.randrange(5)) for _ in range(60)]
    scores = np.array([[round(random.random(), 2) for _ in actions] for _ in rows], dtype="<f4")
    head = "id,video_id,start,end,class_id,verb,noun,annotation\n"
    line = lambda i, r: f"{i},{r[0]},0,10,{r[1]},{actions[r[1]][0]},{actions[r[1]][1]},{r[2]}\n"
    truth = put("clips.csv", head + "".join(line(i, r) for i, r in enumerate(rows)))
    file = io.BytesIO()
    np.save(file, scores)
    mine = put("clips_said.npy", base64.b64encode(file.getvalue()).decode())
    averages = []
    for number, (verb, noun) in enumerate(actions):
        groups = [[], [], []]
        for i, (_, action, seen) in enumerate(rows):
            if action == number:
                groups[{1: 0, 0: 1}.get(seen, 2)].append(i)
            elif seen == 1:
                groups[2 if (actions[action][0] == verb) != (actions[action][1] == noun) else 1].append(i)
        if not groups[0]:
            continue
        y, s, w = [], [], []
        for k, group in enumerate(groups):
            videos = [rows[i][0] for i in group]
            y += [k == 0] * len(group)
            s += [scores[i, number] for i in group]
            w += [1 / videos.count(v) for v in videos]
        averages.append(average_precision_score(y, s, sample_weight=w))
    check(["mwap"], "compute_score.py of RareAct on scikit-learn 1.9.1", truth, mine, {"mwap": float(np.mean(averages))})


def dialogs():
    from sklearn.metrics import ndcg_score

    relevance = [[random.choice([0, 0, 0, 0.2, 0.6, 1]) for _ in range(9)] + [1] for _ in range(8)]
    scores = [random.sample(range(100), 10) for _ in range(8)]
    gains = []
    for r, s in zip(relevance, scores):
        gains.append(ndcg_score([r], [s], k=sum(x != 0 for x in r)))
    truth = put("relevance.json", [dict(image_id=i, round_id=3, gt_relevance=r) for i, r in enumerate(relevance)])
    said = [dict(image_id=i, round_id=3, scores=s) for i, s in enumerate(scores)]
    mine = put("relevance_said.json", said)
    check(["ndcg"], "scikit-learn 1.9.1", truth, mine, {"ndcg": float(np.mean(gains))})
    ranks = [1 + sum(x > s[i % 10] for x in s) for i, s in enumerate(scores)]
    rounds = lambda i: [dict(question=0, answer_options=list(range(10)), gt_index=j) for j in (0, 0, i % 10)]
    truth = put("dialogs.json", dict(data=dict(dialogs=[dict(image_id=i, caption="", dialog=rounds(i)) for i in range(8)])))
    first = [dict(image_id=i, round_id=n, scores=list(range(9, -1, -1))) for i in range(8) for n in (1, 2)]
    mine = put("dialogs_said.json", said + first)
    ranks += [1] * 16
    mean = lambda f: sum(map(f, ranks)) / len(ranks)
    values = {f"recall@{k}": mean(lambda r: float(r <= k)) for k in (1, 5, 10)}
    values |= {"mean-rank": mean(float), "mean-reciprocal-rank": mean(lambda r: 1 / r)}
    check(["recall"], "formulas of VisDial", truth, mine, values)


def exact():
    rows = [
        ("v0", "pan pan pot wok lid", "Pan "), ("v1", "pot lid wok lid pan", "pot"), ("v2", "wok wok pan pot wok", "cup"),
        ("v3", "pot wok pot pan pan", "WOK"), ("v4", "lid pan lid lid wok", " lid"), ("v5", "lid pan wok wok wok", "pans"),
        ("v6", "wok pot pan pot pot", "wok"), ("v7", "pot pan wok pot pan", ""),
    ]
    rows = [(v, a.split(), p) for v, a, p in rows]
    head = "video_id,start,end,question,answer1,answer2,answer3,answer4,answer5\n"
    truth = put("ivqa.csv", head + "".join(f"{v},0,1,q,{','.join(a)}\n" for v, a, _ in rows))
    mine = put("ivqa_said.json", [dict(video_id=v, answer=p) for v, _, p in rows])
    same = lambda p, a: p.strip().lower() == a
    value = sum(min(sum(same(p, x) for x in a) / 2, 1) for _, a, p in rows) / len(rows)
    check(["ivqa"], "formula", truth, mine, {"ivqa": value})
    truth = put("msvd.json", [dict(id=i, video_id=i // 2, question="q", answer=a[0]) for i, (_, a, _) in enumerate(rows)])
    mine = put("msvd_said.json", [dict(id=i, answer=p) for i, (_, _, p) in enumerate(rows)])
    check(["exact"], "formula", truth, mine, {"exact": sum(same(p, a[0]) for _, a, p in rows) / len(rows)})


captions()
answers(sys.argv[1])
next_qa()
choices()
labels()
clips()
dialogs()
exact()
json.dump(dict(files=files, checks=checks, words=word_lists), sys.stdout, indent=1, ensure_ascii=True)
