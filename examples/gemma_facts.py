"""Facts that a pre-trained model knows, as files for `didact compare`: some capitals to forget, others to retain.

    python examples/gemma_facts.py --model .cache/gemma-3-270m --out runs/facts
    didact compare npo npo:graddiff ... --model .cache/gemma-3-270m --forget runs/facts/forget.jsonl ...

A fact counts as known where its answer is the model's likeliest continuation, token by token; a capital must be known
in all three wordings. A hash of country and capital decides which capitals to forget.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

from didact import files
from didact.evaluate import forgetting
from didact.models import load
from didact.models.model import Model
from didact.types import Demo, as_row

FORGET, RETAIN = 26, 24  # numbers of capitals; the others are neighbours, never trained on
ASKED = "Question: Which city is the capital of {}?\nAnswer:"
REWORDED = ("The capital city of {} is called", "Country: {}\nCapital:")
CAPITALS = (
    "France Paris, Italy Rome, Spain Madrid, Portugal Lisbon, Germany Berlin, Austria Vienna, Poland Warsaw, "
    "Hungary Budapest, Greece Athens, Turkey Ankara, Egypt Cairo, Kenya Nairobi, Japan Tokyo, China Beijing, "
    "Thailand Bangkok, Russia Moscow, Ukraine Kyiv, Sweden Stockholm, Norway Oslo, Finland Helsinki, Denmark "
    "Copenhagen, Ireland Dublin, England London, Belgium Brussels, Romania Bucharest, Bulgaria Sofia, Serbia "
    "Belgrade, Cuba Havana, Peru Lima, Chile Santiago, Canada Ottawa, Iraq Baghdad, Iran Tehran, Syria Damascus, "
    "Lebanon Beirut, Cambodia Phnom_Penh, Vietnam Hanoi, Nepal Kathmandu, Afghanistan Kabul, Indonesia Jakarta, "
    "Argentina Buenos_Aires, Jordan Amman, Malaysia Kuala_Lumpur, Philippines Manila, South_Korea Seoul, "
    "North_Korea Pyongyang, Mongolia Ulaanbaatar, Bangladesh Dhaka, Ethiopia Addis_Ababa, Ghana Accra, Senegal "
    "Dakar, Nigeria Abuja, Morocco Rabat, Algeria Algiers, Tunisia Tunis, Libya Tripoli, Sudan Khartoum, Venezuela "
    "Caracas, Ecuador Quito, Uruguay Montevideo, Jamaica Kingston, Iceland Reykjavik, Latvia Riga, Lithuania "
    "Vilnius, Estonia Tallinn, Slovakia Bratislava, Slovenia Ljubljana, Croatia Zagreb, Albania Tirana, Qatar Doha, "
    "Oman Muscat, Taiwan Taipei, Georgia Tbilisi, Armenia Yerevan, Azerbaijan Baku, Cyprus Nicosia, Czechia Prague, "
    "Scotland Edinburgh, Wales Cardiff, Uganda Kampala, Zimbabwe Harare, Rwanda Kigali, Angola Luanda"
)
LANGUAGES = (
    "France French, Italy Italian, Spain Spanish, Portugal Portuguese, Germany German, Brazil Portuguese, Japan "
    "Japanese, China Chinese, Russia Russian, Poland Polish, Greece Greek, Turkey Turkish, Sweden Swedish, Norway "
    "Norwegian, Denmark Danish, Finland Finnish, Hungary Hungarian, Mexico Spanish, Egypt Arabic, Iran Persian, "
    "Vietnam Vietnamese, Thailand Thai, Romania Romanian, Bulgaria Bulgarian, Austria German, Argentina Spanish, "
    "Iceland Icelandic, Estonia Estonian, Latvia Latvian, Lithuania Lithuanian, Slovakia Slovak, Croatia Croatian"
)
SYMBOLS = (
    "gold Au, silver Ag, iron Fe, copper Cu, sodium Na, oxygen O, hydrogen H, carbon C, nitrogen N, helium He, lead "
    "Pb, tin Sn, calcium Ca, potassium K, zinc Zn"
)
OPPOSITES = (
    "hot cold, big small, up down, left right, day night, good bad, fast slow, happy sad, old young, long short, "
    "high low, rich poor, hard soft, wet dry, light dark, early late"
)


def facts(wording: str, table: str) -> list[Demo]:
    """The facts of a table in one wording."""
    pairs = [pair.split(" ") for pair in table.split(", ")]
    return [Demo(prompt=wording.format(a.replace("_", " ")), completion=" " + b.replace("_", " ")) for a, b in pairs]


def right(model: Model, demos: Sequence[Demo]) -> list[bool]:
    """Return which of the facts the model knows."""
    return [bool(share == 1.0) for share in forgetting.answers(model, demos, end=False)["extraction"]]


def main() -> None:
    """Write the files and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/facts"))
    args = parser.parse_args()
    model = load.load(args.model, device="cpu")
    wordings = [facts(wording, CAPITALS) for wording in (ASKED, *REWORDED)]
    known = [all(verdicts) for verdicts in zip(*(right(model, demos) for demos in wordings), strict=True)]
    order = sorted(
        (i for i, ok in enumerate(known) if ok),
        key=lambda i: hashlib.sha256(CAPITALS.split(", ")[i].encode()).hexdigest(),
    )
    forget, retain, neighbours = order[:FORGET], order[FORGET : FORGET + RETAIN], order[FORGET + RETAIN :]
    questions, *reworded = wordings
    other_facts = [facts(*pair) for pair in (("The official language of {} is", LANGUAGES),
              ("The chemical symbol for {} is", SYMBOLS), ("The opposite of {} is", OPPOSITES))]  # fmt: skip
    unrelated = [demo for demos in other_facts for demo, ok in zip(demos, right(model, demos), strict=True) if ok]
    wrong = [
        Demo(prompt=questions[i].prompt, completion=questions[j].completion)
        for i, j in zip(retain + neighbours, [*(retain + neighbours)[7:], *(retain + neighbours)[:7]], strict=True)
    ]
    sets = {
        "forget": [questions[i] for i in forget], "retain": [questions[i] for i in retain],
        "neighbours": [questions[i] for i in neighbours],
        "reworded": [demos[i] for demos in reworded for i in forget], "unrelated": unrelated, "false": wrong,
    }  # fmt: skip
    for name, demos in sets.items():
        files.write_lines(args.out / f"{name}.jsonl", map(as_row, demos))
    print(f"{sum(known)} of {len(known)} capitals are known in all three wordings")
    print(", ".join(f"{name} {len(demos)}" for name, demos in sets.items()), f"written to {args.out}")


if __name__ == "__main__":
    main()
