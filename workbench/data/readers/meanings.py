"""The table of labels: which names, codes and numbers mean a liver, a tumor of it, something else in it, or neither.

Every reader asks this table what a label, segment or folder means; `lines` prints it (`workbench import --labels`). A name is taken apart
into words, whatever its case and accents, and whether or not they are written as one (`LiverTumors_02`). It means liver or tumor only if
every word of it is known: `tumor thrombus` and `liver capsule` mean neither.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache

from workbench.volume import Refused

OTHER, LIVER, TUMOR, BENIGN, WITHIN = range(5)
SAID = {
    LIVER: "is liver. Lobes and Couinaud segments count if together they make a whole liver",
    TUMOR: "is liver tumor, and liver, if no other organ is named with it",
    BENIGN: "belongs to the liver: each piece that touches it. So do vessels and ducts that are named as the liver's own",
    WITHIN: "belongs to the liver where liver lies on both sides of it along two of the three axes, and so does what has an unknown name",
    OTHER: "is neither, and so is a tumor or cyst of it",
}
WORDS = {  # by kind, lower case and without accents; of the languages in which collections are labelled
    LIVER: "liver livers hepar leber foie higado figado fegato lever watroba печень печени 肝 肝脏 肝臓 肝臟",
    TUMOR: """tumor tumors tumour tumours tumoral tumorous tumeur tumeurs tumore tumori tumores tumoren cancer cancers cancro krebs carcinoma carcinomas
        karzinom carcinome hepatocarcinoma hcc hccs chc cholangiocarcinoma icc hepatoblastoma lesion lesions lasion lasionen laesion lesione lesioni
        lesao lesoes lesiones mass masses masse neoplasm neoplasms neoplasia neoplasie malignancy malignancies metastasis metastases metastase
        metastasen metastasi met mets crlm crlms gtv nodule nodules necrosis nekrose guz nowotwor опухоль опухоли 肿瘤 腫瘤 腫瘍 癌 病灶 病变 転移""",
    BENIGN: """cyst cysts cystic kyst kysts kyste kystes zyste zysten quiste quistes cisto cisti hemangioma haemangioma hemangiomas angioma angiomas
        hamangiom fnh hyperplasia adenoma adenomas adenom calcification calcifications abscess abscesses abszess lipoma hamartoma biloma ablation scar
        囊肿 囊腫 嚢胞 血管瘤""",
    WITHIN: """vessel vessels vein veins vena venae venous artery arteries vascular vasculature portal porta bile biliary duct ducts stent tips
        gefass gefasse pfortader vene venen arterie gallengang vaisseau vaisseaux veine veines artere arteres vaso vasos arteria 血管 静脉 门静脉 門脈 胆管""",
    OTHER: """background hintergrund kidney kidneys renal niere nieren rein reins rinon adrenal adrenals surrenal surrenals surre spleen splenic milz rate
        bazo pancreas pancreatic pankreas lung lungs pulmonary lunge poumon poumons pulmon colon colonic rectum rectal bowel intestine duodenum esophagus
        oesophagus stomach gastric magen estomac gallbladder gallblase bladder vesica prostate uterus ovary breast brain heart cardiac bone bones
        skeleton rib ribs spine vertebra vertebrae skin body thorax pelvis neck head leg arm muscle muscles fat aorta cava ivc lymph node nodes
        peritoneum peritoneal mesenteric iliac ascites diaphragm thyroid bronchus airway trachea""",
}  # fmt: skip
HEPATIC = "hepatic intrahepatic hepatocellular hepatique hepatiques hepatico hepatica epatico epatica hepatisch hepatis".split()
FILLERS = """whole entire total all mask masks organ parenchyma structure segmentation label labels roi gt manual auto ai ground truth reference healthy
    normal primary secondary malignant benign largest main index target viable enhancing necrotic metastatic hypervascular hypovascular hypodense
    hyperdense solid simple focal nodular cell cells disease morphologic abnormality anatomical disorder finding of the in de du der des da do la le nr
    number volume mm cm ml colorectal middle common proper inferior superior branch system tree""".split()  # fmt: skip
PARTS = """lobe lobes lappen lobulo segment segments segmento segmente seg couinaud section sector left right caudate quadrate medial lateral anterior
    posterior gauche droit droite links rechts part remnant flr resected graft""".split()  # fmt: skip
JOIN, WITHOUT = "and with plus including incl und mit et avec con".split(), "without non not no minus excluding excl ohne sans".split()
LOBE = "lobe lobes lappen lobulo sector section".split()
NUMBERED = "segment segments segmento segmente seg couinaud s".split()
ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "iva": 4, "ivb": 4, "v": 5, "vi": 6, "vii": 7, "viii": 8}
WHOLE = frozenset(range(1, 9))  # Couinaud's segments
SIDES = {"gauche": "left", "links": "left", "droit": "right", "droite": "right", "rechts": "right"}
LOBES = (  # words of a name, the segments of what it names; the first that fits
    ({"left", "lateral"}, {2, 3}), ({"left", "medial"}, {4}), ({"right", "anterior"}, {5, 8}), ({"right", "posterior"}, {6, 7}),
    ({"quadrate"}, {4}), ({"caudate"}, {1}), ({"left"}, {2, 3, 4}), ({"right"}, {5, 6, 7, 8}),
)  # fmt: skip
CODES = {  # SNOMED CT, as words; pydicom maps the older SRT codes to them
    "10200004": "liver", "181268008": "entire liver",
    "71133005": "liver segment 1", "277956007": "liver segment 2", "277957003": "liver segment 3", "277958008": "liver segment 4",
    "277959000": "liver segment 5", "277960005": "liver segment 6", "277961009": "liver segment 7", "277962002": "liver segment 8",
    "108369006": "neoplasm", "372087000": "primary neoplasm", "86049000": "primary malignant neoplasm", "14799000": "secondary neoplasm",
    "128462008": "metastasis", "4147007": "mass", "52988006": "lesion", "25370001": "hepatocellular carcinoma",
    "109841003": "liver cell carcinoma", "126851005": "neoplasm of liver", "93870000": "malignant neoplasm of liver",
    "94381002": "secondary malignant neoplasm of liver", "300331000": "lesion of liver", "300332007": "liver mass", "371486005": "mass of liver",
    "70179006": "cholangiocarcinoma", "312104005": "cholangiocarcinoma", "68453008": "carcinoma", "1187425009": "carcinoma",
    "367643001": "cyst", "85057007": "cyst of liver", "8993003": "hepatic vein", "32764006": "portal vein", "76015000": "hepatic artery",
    "64033007": "kidney", "78961009": "spleen", "15776009": "pancreas", "28231008": "gallbladder", "39607008": "lung", "15825003": "aorta",
}  # fmt: skip
NUMBERS = {  # of known collections; never guessed from the numbers alone, since most of them use 1 and 2
    "LiTS, MSD Task03_Liver": {1: "liver", 2: "tumor"},
    "MSD Task08_HepaticVessel": {1: "vessel", 2: "tumor"},
    "CHAOS (CT)": {255: "liver"},
    "HCC-TACE-Seg": {1: "liver", 2: "mass", 3: "portal vein", 4: "abdominal aorta"},
    "BTCV, AMOS22": {6: "liver"},
    "FLARE22, WORD, AbdomenCT-1K": {1: "liver"},
    "TotalSegmentator, total": {5: "liver"},
    "TotalSegmentator, liver_vessels": {1: "liver vessels", 2: "liver tumor"},
    "TotalSegmentator, liver_segments": {n: f"liver segment {n}" for n in sorted(WHOLE)},
}
_KIND = {word: kind for kind, words in WORDS.items() for word in words.split()}
_KNOWN = {*_KIND, *HEPATIC, *FILLERS, *PARTS, *LOBE, *NUMBERED, *JOIN, *WITHOUT, *ROMAN}


def meaning(name: str) -> int:
    """LIVER, TUMOR, BENIGN, WITHIN or OTHER for what a label, segment or folder is called."""
    words = _words(name)
    kinds = {_KIND[word] for word in words if word in _KIND}
    liver = LIVER in kinds or bool(words & set(HEPATIC))
    if OTHER in kinds or not words:
        return WITHIN if WITHIN in kinds and not words & {"aorta", "cava", "ivc"} else OTHER
    if not all(word in _KNOWN or word.isdigit() for word in words):
        return WITHIN
    if words & set(WITHOUT):
        return LIVER if LIVER in kinds else WITHIN
    if words & set(JOIN) and LIVER in kinds:
        return LIVER  # a liver with what lies in it
    if WITHIN in kinds and TUMOR not in kinds and (LIVER in kinds or "intrahepatic" in words):
        return BENIGN  # `liver vessels`: those in it alone
    for kind in (BENIGN, TUMOR, WITHIN, LIVER):
        if kind in kinds:
            return kind
    part = portion(name) != WHOLE and (liver or words & {*LOBE, *NUMBERED})
    return LIVER if part or liver and "parenchyma" in words else WITHIN


def known(name: str) -> bool:
    """Whether a word of a name has a meaning of its own."""
    return any(word in _KIND for word in _words(name)) or meaning(name) == LIVER


def unnamed(name: str) -> bool:
    """Whether this is a name that programs give by themselves: `Segment_1`."""
    return re.fullmatch(r"(segment|label|class|region)?[\s_-]*\d*", name.strip().lower()) is not None


def portion(name: str) -> frozenset[int]:
    """The Couinaud segments of what is called so: all of them for a liver, none for a remnant of one."""
    words = {SIDES.get(word, word) for word in _words(name)}
    if not words & {*PARTS, *LOBE, *NUMBERED} or words & {"whole", "entire", "total", "all"}:
        return WHOLE
    numbers = {int(word) if word.isdigit() else ROMAN[word] for word in words if word.isdigit() or word in ROMAN}
    if numbers and words & set(NUMBERED):
        return frozenset(numbers)
    if words & {"remnant", "flr", "resected", "graft", "part"}:
        return frozenset()
    return next((frozenset(held) for mark, held in LOBES if mark <= words), WHOLE)


def elsewhere(region: str) -> bool:
    """Whether a region that an object gives for a tumor is another organ: neither the liver, nor a part of the body that holds it."""
    words = _words(region)
    kinds = {_KIND.get(word) for word in words - {"body"}}
    return OTHER in kinds and LIVER not in kinds


def each(names: Iterable[str], subject: object, fix: str) -> dict[str, int]:
    """What each name of a collection means. Refused without a liver, or where its parts make no whole one."""
    meant = {name: meaning(name) for name in names}
    livers = [name for name, kind in meant.items() if kind == LIVER]
    if not livers:
        raise Refused(subject, f"labels called {', '.join(meant) or 'nothing'}", "one called liver", fix)
    whole([portion(name) for name in livers], livers, subject, fix)
    return meant


def whole(portions: Iterable[frozenset[int]], names: Iterable[str], subject: object, fix: str) -> None:
    """Refuse parts of a liver that make no whole one. A left and a right lobe do: the caudate lobe is then in one of them."""
    portions = list(portions)
    numbered = any(len(part) == 1 and not part <= {1, 4} for part in portions)
    lacking = sorted((WHOLE if numbered else WHOLE - {1}) - frozenset().union(*portions))
    if lacking:
        raise Refused(subject, f"{', '.join(names)}, without the Couinaud segments {', '.join(map(str, lacking))}", "a whole liver", fix)


def lines() -> list[str]:
    """The table, for people."""
    names = {LIVER: "Liver", TUMOR: "Tumor", BENIGN: "Benign", WITHIN: "In the liver", OTHER: "Other"}
    told = []
    for kind, words in WORDS.items():
        codes = [f"{code} ({text})" for code, text in CODES.items() if meaning(text) == kind]
        told += [f"{names[kind]}: {SAID[kind]}.", f"  words: {', '.join(words.split())}"]
        told += [f"  SNOMED CT: {', '.join(codes)}"] if codes else []
    told.append(f"Words that change nothing beside these: {', '.join((*HEPATIC, *FILLERS, *PARTS))}.")
    told.append("Numbers of known collections (name them with `workbench import csv`, columns liver and tumor):")
    told += [f"  {collection}: {', '.join(f'{n} {name}' for n, name in held.items())}" for collection, held in NUMBERS.items()]
    return told


def numbers(values: Iterable[int]) -> str:
    """The collections whose numbers these may be, for a message; empty where none fits."""
    values = set(values) - {0}
    fits = [f"{name} ({', '.join(f'{n} {what}' for n, what in held.items())})" for name, held in NUMBERS.items() if set(held) & values]
    return ", ".join(fits)


@cache
def _words(name: str) -> frozenset[str]:
    """The words of a name: lower case, without accents, joined ones apart."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name.lower()) if not unicodedata.combining(c))
    plain = plain.replace("body structure", "").replace("+", " and ").replace("&", " and ")
    plain = re.sub(r"(?<=\d)[ab]\b", "", plain)  # segments 4a and 4b
    found: list[str] = []
    for token in re.findall(r"[^\W\d_]+|\d+", plain):
        found += [token.lstrip("0") or "0"] if token.isdigit() else _apart(token) or [token]
    return frozenset(found)


@cache
def _apart(token: str) -> list[str] | None:
    """Known words that a token is made of; None where it is not."""
    if token in _KNOWN:
        return [token]
    for end in range(len(token) - 1, 0, -1):
        head = token[:end]
        if head in _KNOWN and (end > 2 or not head.isascii()) and (rest := _apart(token[end:])) is not None:
            if len(token) - end > 2 or not token[end:].isascii():
                return [head, *rest]
    return None
