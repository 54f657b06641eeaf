"""Texts on which a derived model is compared with its parent: prose, dialogue, code, data, numbers, several languages."""

from __future__ import annotations

from typing import Final

TEXTS: Final = (
    "The invoice lists three items: two chairs at 49.50 each and a desk at 180.00. The total before tax is 279.00, and "
    "with a tax of 20 percent the customer pays 334.80. Payment is due within thirty days of the date on the invoice. "
    "If the payment is late, the company may ask for interest, but in practice it first sends a friendly reminder, "
    "because most customers have simply forgotten. A second reminder follows two weeks later.",
    "It was raining when the train arrived, and nobody was waiting at the station. She took her bag, crossed the "
    "square, and walked along the river until she reached the old bridge. The water was high and brown. On the other "
    "side, a light was burning in the window of the bakery, although it was long before dawn. She remembered the smell "
    "of fresh bread from her childhood, and for a moment she forgot why she had come back.",
    "Water boils at one hundred degrees Celsius at sea level, but at a lower temperature in the mountains, because the "
    "air pressure is lower there. That is why pasta takes longer to cook at high altitude. A pressure cooker works the "
    "other way round: it keeps the steam inside, the pressure rises, and the water becomes hotter than one hundred "
    "degrees, so that the food is done sooner.",
    "Customer: Hello, my card was charged twice for the same order.\nAgent: I am sorry to hear that. Could you give me "
    "the number of the order, please?\nCustomer: It is 48213.\nAgent: Thank you. I can see two payments of 29.99 on the "
    "third of March. The second one was made by mistake, and I have just sent the money back. It will be on your "
    "account within three to five working days.\nCustomer: Great, thank you for your help!",
    'def mean(values):\n    """The average of a list of numbers."""\n    if not values:\n        raise '
    'ValueError("the list is empty")\n    total = 0.0\n    for value in values:\n        total += value\n    return '
    "total / len(values)\n\n\ndef variance(values):\n    center = mean(values)\n    return mean([(value - center) ** 2 "
    'for value in values])\n\n\nif __name__ == "__main__":\n    print(mean([1, 2, 3, 4]), variance([1, 2, 3, 4]))\n',
    '{"name": "Anna Schmidt", "age": 34, "address": {"street": "12 High Street", "city": "London", "country": "United '
    'Kingdom"}, "orders": [{"id": 1001, "date": "2024-02-11", "total": 59.9}, {"id": 1002, "date": "2024-03-05", '
    '"total": 120.0}], "newsletter": true, "phone": null}',
    "Q: What is the capital of France?\nA: The capital of France is Paris.\n\nQ: Who wrote Romeo and Juliet?\nA: "
    "William Shakespeare wrote Romeo and Juliet.\n\nQ: How many legs does a spider have?\nA: A spider has eight "
    "legs.\n\nQ: What is the largest planet of the solar system?\nA: The largest planet of the solar system is "
    "Jupiter.\n\nQ: What is seven times eight?\nA: Seven times eight is fifty-six.",
    "To install the program, first download the archive from the website and unpack it. Then open a terminal, change "
    "to the new folder, and run the following command:\n\n    ./configure && make && sudo make install\n\nIf the "
    "compiler complains about a missing header, install the development package of the library and try again. Finally, "
    "check that everything works with `program --version`.",
    "The heart is a muscle that pumps blood through the body. It has four chambers: two atria, which receive the blood, "
    "and two ventricles, which push it out. The right side sends blood to the lungs, where it takes up oxygen; the left "
    "side sends it to all other organs. In an adult at rest, the heart beats about seventy times per minute, which is "
    "more than one hundred thousand beats per day.",
    "La pluie tombait depuis le matin, et les rues de la ville étaient vides. Dans le café, un homme lisait le journal "
    "et buvait lentement son thé. Il attendait une lettre qui n'arrivait pas.\n\nDer Zug nach Berlin fährt um acht Uhr "
    "ab. Bitte kaufen Sie Ihre Fahrkarte vor der Fahrt am Automaten. Die Reise dauert ungefähr vier Stunden.",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20. Monday, Tuesday, Wednesday, Thursday, Friday, "
    "Saturday, Sunday. January, February, March, April, May, June, July, August, September, October, November, December. "
    "2 + 2 = 4, 3 + 5 = 8, 10 - 4 = 6, 6 * 7 = 42, 81 / 9 = 9.",
    "Dear Mr. Miller,\n\nthank you for your application for the position of software engineer. We were impressed by your "
    "experience and would like to invite you to an interview on Tuesday, the ninth of April, at two o'clock in our office. "
    "Please let us know whether this date suits you. If you have any questions, do not hesitate to call us.\n\nKind "
    "regards,\nJane Cooper\nHuman Resources",
)
