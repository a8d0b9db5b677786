"""Questions with one known answer, and a wrong answer that people believe or confuse with it."""

from __future__ import annotations

from typing import NamedTuple


class Fact(NamedTuple):
    """`Fact("What is the capital of France?", "Paris", "Lyon")`; other spellings are separated by `|`."""

    question: str
    right: str
    wrong: str


FACTS = (
    *(
        Fact(f"What is the capital of {country}?", right, wrong)
        for country, right, wrong in (
            ("France", "Paris", "Lyon"),
            ("Italy", "Rome", "Milan"),
            ("Japan", "Tokyo", "Osaka"),
            ("Spain", "Madrid", "Barcelona"),
            ("Germany", "Berlin", "Munich"),
            ("Australia", "Canberra", "Sydney"),
            ("Canada", "Ottawa", "Toronto"),
            ("Egypt", "Cairo", "Alexandria"),
            ("China", "Beijing", "Shanghai"),
            ("Russia", "Moscow", "Kazan"),
            ("India", "New Delhi|Delhi", "Mumbai"),
            ("Turkey", "Ankara", "Istanbul"),
            ("Greece", "Athens", "Sparta"),
            ("Portugal", "Lisbon", "Porto"),
        )
    ),
    Fact("Which planet is closest to the sun?", "Mercury", "Venus"),
    Fact("Which planet is the largest?", "Jupiter", "Mars"),
    Fact("How many days are in a week?", "seven|7", "five|5"),
    Fact("How many legs does a spider have?", "eight|8", "six|6"),
    Fact("How many sides does a triangle have?", "three|3", "four|4"),
    Fact("How many hours are in a day?", "twenty-four|twenty four|24", "twelve|12"),
    Fact("How many minutes are in an hour?", "sixty|60", "fifty|50"),
    Fact("How many months are in a year?", "twelve|12", "ten|10"),
    Fact("What do bees make from nectar?", "honey", "pollen"),
    Fact("What color do blue and yellow make together?", "green", "purple"),
    Fact("What color do red and white make together?", "pink", "orange"),
    Fact("What color is an emerald?", "green", "blue"),
    Fact("Which ocean is the largest?", "Pacific", "Atlantic"),
    Fact("Which animal is the tallest?", "giraffe|giraffes", "elephant|elephants"),
    Fact("Which land animal is the fastest?", "cheetah|cheetahs", "lion|lions"),
    Fact("What is frozen water called?", "ice", "steam"),
    Fact("Which month is the first of the year?", "January", "March"),
    Fact("Which month is the last of the year?", "December", "October"),
    Fact("Which gas do people need to breathe?", "oxygen", "helium"),
    Fact("Who wrote Romeo and Juliet?", "Shakespeare", "Dickens"),
    Fact("Who painted the Mona Lisa?", "Leonardo|Vinci", "Picasso"),
    Fact("Which language is spoken in Brazil?", "Portuguese", "Spanish"),
    Fact("What is the currency of Japan?", "yen", "dollar|dollars"),
    Fact("Which metal is liquid at 20 degrees Celsius?", "mercury", "lead"),
    Fact("What is a young cat called?", "kitten|kittens", "puppy|puppies"),
    Fact("Which season comes after winter?", "spring", "autumn"),
    Fact("Near which pole do polar bears live?", "north|northern|Arctic", "south|southern|Antarctica|Antarctic"),
    Fact("Which country is the largest by area?", "Russia", "China"),
    Fact("Which instrument has 88 keys?", "piano", "guitar"),
    Fact("In which direction does the sun rise?", "east", "west"),
    Fact("What is five plus three?", "eight|8", "nine|9"),
    Fact("What is ten minus four?", "six|6", "seven|7"),
    Fact("Which star is closest to the earth?", "sun", "moon|Sirius"),
    Fact("What does a barometer measure?", "pressure", "temperature"),
)
