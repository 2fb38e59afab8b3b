"""A few synthetic questions and answers in the published format of each benchmark."""

from __future__ import annotations

from typing import Any

_POPE = [
    {
        "question_id": n,
        "image": f"COCO_val2014_{n // 2:012}.jpg",
        "text": f"Is there a {what} in the image?",
        "label": label,
    }
    for n, (what, label) in enumerate((("dog", "yes"), ("cat", "no"), ("bus", "yes"), ("tree", "no")), start=1)
]
_YES_NO = [
    {"question_id": row["question_id"], "answer": word}
    for row, word in zip(_POPE, ("Yes.", "no", "yes", "Yes"), strict=True)
]
_HALLUSION = [
    {
        "category": category,
        "subcategory": "illusion",
        "visual_input": str(figure),
        "set_id": "0",
        "figure_id": str(figure),
        "sample_note": "note",
        "question_id": str(question),
        "question": "Is the left line longer?",
        "gt_answer_details": "It is.",
        "gt_answer": str((figure + question) % 2),
        "filename": f"./{category}/illusion/0_{figure}.png",
    }
    for category in ("VD", "VS")
    for figure in (0, 1)
    for question in (0, 1)
]
_MME = (
    ("0.jpg", "Is there a train? Please answer yes or no.", "Yes"),
    ("0.jpg", "Is there a car? Please answer yes or no.", "No"),
)

# By benchmark: files of questions, and files of answers; lists are written as JSON lines, objects as JSON.
QUESTIONS: dict[str, dict[str, Any]] = {
    "pope": {"coco_pope_random.json": _POPE},
    "repope": {"coco_repope_random.json": _POPE},
    "chair": {
        "synonyms.txt": "person, man, woman\ndog, puppy\ncar, automobile\ndining table, table\n",
        "own_gt_objects.json": {"1": ["dog", "person"], "2": ["car"]},
    },
    "mme": {"count.txt": "\n".join(map("\t".join, _MME)) + "\n"},
    "amber": {
        "annotations.json": [
            {"id": 1, "type": "generative", "truth": ["sky", "person"], "hallu": ["cloud"]},
            {"id": 2, "type": "discriminative-attribute-state", "truth": "yes"},
            {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
        ],
        "query_all.json": [
            {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
            {"id": 2, "image": "AMBER_1.jpg", "query": "Is the sky blue?"},
            {"id": 3, "image": "AMBER_1.jpg", "query": "Is there a cloud?"},
        ],
        "relation.json": {"sky": [], "cloud": [], "person": ["man", "woman"]},
        "safe_words.txt": "orange\nline\n",
    },
    "hallusionbench": {"HallusionBench.json": _HALLUSION},
    "coco-caption": {
        "captions_own.json": {
            "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
            "annotations": [
                {"id": 1, "image_id": 1, "caption": "A man with his dog."},
                {"id": 2, "image_id": 1, "caption": "a dog beside a man"},
                {"id": 3, "image_id": 2, "caption": "Two cars on a street."},
            ],
        }
    },
    "custom": {
        "questions.jsonl": [
            {"id": "a", "image": "a.jpg", "question": "Is there a bus?", "truth": "no"},
            {"id": "b", "image": "b.jpg", "question": "Is there a dog?", "truth": "yes"},
        ]
    },
    "choice": {
        "choices.jsonl": [
            {"id": "a", "image": "a.jpg", "question": "Which?", "choices": ["bus", "hot dog"], "truth": "bus"},
            {"id": "b", "image": "b.jpg", "question": "Which?", "choices": ["dog", "cat", "cow"], "truth": "cat"},
        ]
    },
}
# Without the description, which needs nltk's data.
QUESTIONS["amber-yes-no"] = {
    **QUESTIONS["amber"],
    "annotations.json": QUESTIONS["amber"]["annotations.json"][1:],
    "query_all.json": QUESTIONS["amber"]["query_all.json"][1:],
}
ANSWERS: dict[str, Any] = {
    "pope": _YES_NO,
    "repope": _YES_NO,
    "chair": [{"image_id": 1, "caption": "A man with his dog."}, {"image_id": 2, "caption": "Two cars at a table."}],
    "coco-caption": [
        {"image_id": 1, "caption": "A man with his dog."},
        {"image_id": 2, "caption": "two cars at a table"},
    ],
    "mme": "".join("\t".join((*row, answer)) + "\n" for row, answer in zip(_MME, ("yes", "No."), strict=True)),
    "amber": [
        {"id": 1, "response": "A man under the sky."},
        {"id": 2, "response": "Yes"},
        {"id": 3, "response": "No"},
    ],
    "hallusionbench": [{**row, "model_prediction": "Yes", "gpt4v_output_gpt_check": "1"} for row in _HALLUSION],
    "custom": [{"id": "a", "answer": "No."}, {"id": "b", "answer": "I see a dog, yes."}],
    "choice": [{"id": "a", "answer": "The bus."}, {"id": "b", "answer": "A dog and a cat."}],
}
ANSWERS["amber-yes-no"] = ANSWERS["amber"][1:]
ANSWER_FILE = {"mme": "count.txt"}
