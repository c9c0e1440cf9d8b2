"""The glyphs the shipped model knows.

One line each: the character's Unicode name, then the prompt, then further captions it is trained on.
The Unicode name in lower case is always a caption too. An article at the start of a caption is
replaced by every article in turn (see `captions.py`), so only the noun matters there.
The order here is the order of `prompts.txt` and of the cells of `glyphs.png`.
"""

TABLE = """
RED APPLE: a red apple | apple
GREEN APPLE: a green apple
PEAR: a pear
BANANA: a banana
LEMON: a lemon
TANGERINE: a tangerine | orange
CHERRIES: cherries
STRAWBERRY: a strawberry
WATERMELON: a slice of watermelon
GRAPES: grapes
PINEAPPLE: a pineapple
PEACH: a peach
KIWIFRUIT: a kiwi fruit | kiwi
AVOCADO: an avocado
COCONUT: a coconut
TOMATO: a tomato
AUBERGINE: an aubergine | eggplant
CARROT: a carrot
EAR OF MAIZE: an ear of corn | corn
HOT PEPPER: a hot pepper | chili pepper
BROCCOLI: broccoli
MUSHROOM: a mushroom
BREAD: a loaf of bread
CHEESE WEDGE: a piece of cheese | cheese
HAMBURGER: a hamburger | burger
SLICE OF PIZZA: a slice of pizza | pizza
FRENCH FRIES: french fries
HOT DOG: a hot dog
TACO: a taco
POPCORN: popcorn
DOUGHNUT: a doughnut | donut
COOKIE: a cookie
CHOCOLATE BAR: a chocolate bar | bar of chocolate
LOLLIPOP: a lollipop
SOFT ICE CREAM: an ice cream cone
BIRTHDAY CAKE: a birthday cake
CUPCAKE: a cupcake
PRETZEL: a pretzel
PANCAKES: pancakes
COOKING: a fried egg in a pan | fried egg
HOT BEVERAGE: a cup of coffee
BEER MUG: a mug of beer | beer
WINE GLASS: a glass of red wine | glass of wine
COCKTAIL GLASS: a cocktail
TEAPOT: a teapot
GLASS OF MILK: a glass of milk
HONEY POT: a pot of honey
CROISSANT: a croissant
CACTUS: a cactus
SUNFLOWER: a sunflower
TULIP: a tulip
ROSE: a red rose
HIBISCUS: a hibiscus
CHERRY BLOSSOM: a cherry blossom
EVERGREEN TREE: an evergreen tree | fir tree
DECIDUOUS TREE: a deciduous tree | green tree
PALM TREE: a palm tree
FOUR LEAF CLOVER: a four leaf clover | clover
MAPLE LEAF: a maple leaf
POTTED PLANT: a potted plant
DOG FACE: a dog | puppy
CAT FACE: a cat | kitten
MOUSE FACE: a mouse
RABBIT FACE: a rabbit | bunny
BEAR FACE: a bear | brown bear
PANDA FACE: a panda
FROG FACE: a frog | green frog
PIG FACE: a pig | pink pig
MONKEY FACE: a monkey
TIGER FACE: a tiger
COW FACE: a cow
LION FACE: a lion
FOX FACE: a fox
KOALA: a koala
UNICORN FACE: a unicorn
WOLF FACE: a wolf
PENGUIN: a penguin
OWL: an owl
EAGLE: an eagle
DUCK: a duck
FRONT-FACING BABY CHICK: a baby chick | chick
FLAMINGO: a flamingo | pink flamingo
PARROT: a parrot
TROPICAL FISH: a tropical fish
OCTOPUS: an octopus
SPOUTING WHALE: a whale | blue whale
DOLPHIN: a dolphin
SHARK: a shark
CRAB: a crab | red crab
SNAIL: a snail
LADY BEETLE: a ladybug | ladybird
HONEYBEE: a bee
BUTTERFLY: a butterfly | blue butterfly
TURTLE: a turtle
SNAKE: a snake
ELEPHANT: an elephant
GRINNING FACE: a grinning face
SMILING FACE WITH SUNGLASSES: a smiling face with sunglasses | face with sunglasses
SMILING FACE WITH HEART-SHAPED EYES: a smiling face with heart eyes | face with heart eyes
CRYING FACE: a crying face
POUTING FACE: an angry red face | angry face
SLEEPING FACE: a sleeping face
FACE WITH COWBOY HAT: a face with a cowboy hat | cowboy
CLOWN FACE: a clown
GHOST: a ghost
SKULL: a skull
EXTRATERRESTRIAL ALIEN: an alien
ROBOT FACE: a robot
HEAVY BLACK HEART: a red heart | heart
BLUE HEART: a blue heart
GREEN HEART: a green heart
YELLOW HEART: a yellow heart
PURPLE HEART: a purple heart
WHITE MEDIUM STAR: a yellow star | star
BLACK SUN WITH RAYS: the sun | yellow sun
CRESCENT MOON: a crescent moon
FULL MOON SYMBOL: a full moon
EARTH GLOBE EUROPE-AFRICA: the earth | globe
RINGED PLANET: a planet with a ring | planet
CLOUD: a cloud
RAINBOW: a rainbow
SNOWFLAKE: a snowflake
SNOWMAN WITHOUT SNOW: a snowman
HIGH VOLTAGE SIGN: a lightning bolt | lightning
FIRE: a fire | flame
DROPLET: a drop of water | water drop
VOLCANO: a volcano
ROCKET: a rocket
AUTOMOBILE: a red car | car
BUS: a bus
AMBULANCE: an ambulance
FIRE ENGINE: a fire engine | fire truck
TRACTOR: a tractor
STEAM LOCOMOTIVE: a steam locomotive
BICYCLE: a bicycle | bike
HELICOPTER: a helicopter
AIRPLANE: an airplane | plane
SAILBOAT: a sailboat
ANCHOR: an anchor
HOUSE BUILDING: a house
EUROPEAN CASTLE: a castle
ALARM CLOCK: an alarm clock
BALLOON: a red balloon | balloon
WRAPPED PRESENT: a wrapped present | gift
JACK-O-LANTERN: a halloween pumpkin | pumpkin
SOCCER BALL: a soccer ball | football
BASKETBALL AND HOOP: a basketball and hoop | basketball
TROPHY: a trophy | golden cup
CROWN: a golden crown | crown
GEM STONE: a diamond | gem
KEY: a key | golden key
LOCK: a lock | padlock
ELECTRIC LIGHT BULB: a light bulb
UMBRELLA: an umbrella
TOP HAT: a top hat
GUITAR: a guitar
TRUMPET: a trumpet
ARTIST PALETTE: an artist palette
TEDDY BEAR: a teddy bear
MAGNET: a magnet
"""


def glyphs():
    """[(unicode name, prompt, [captions])], in the order of the table."""
    rows = []
    for line in TABLE.strip().splitlines():
        name, _, rest = line.partition(":")
        texts = [t.strip() for t in rest.split("|")]
        rows.append((name, texts[0], [*texts, name.lower()]))
    return rows


def slug(prompt):
    """File name (without extension) of the picture of a prompt: runs of other characters become '-'."""
    return "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in prompt.lower()).split())
