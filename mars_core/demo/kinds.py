"""Which drawings are animals, foods, plants, ...: Unicode names (underscores for blanks) by kind.

OpenMoji ships no categories with its drawings, so the kinds that the demo asks about are listed here. A
drawing that stands in no list is kept for pre-training the backbone and never appears in the demo data.
"""

from __future__ import annotations

_ANIMALS = """
ant badger bat bear beaver beetle bird bison black_bird black_cat blowfish boar bug butterfly camel cat
chicken chipmunk cockroach cow crab cricket crocodile deer dodo dog dolphin donkey dove dragon duck eagle
elephant ewe fish flamingo fly fox frog giraffe goat goose gorilla guide_dog hatching_chick baby_chick
front-facing_baby_chick hedgehog hippopotamus honeybee horse jellyfish kangaroo koala lady_beetle leopard
lion lizard llama lobster mammoth monarch_butterfly monkey moose mosquito mouse octopus orangutan orca otter
owl ox panda parrot peacock penguin phoenix pig polar_bear poodle rabbit raccoon ram rat rhinoceros rooster
sauropod T-Rex scorpion seal service_dog shark shrimp skunk sloth snail snake spider spouting_whale squid swan
teddy_bear tiger tropical_fish turkey turtle two-hump_camel unicorn water_buffalo whale wolf worm zebra
cat_face cow_face dog_face dragon_face horse_face monkey_face mouse_face pig_face rabbit_face tiger_face hamster
microbe spiral_shell oyster carousel_horse
"""
_FOODS = """
avocado bacon bagel baguette_bread banana beans beer_mug bell_pepper bento_box beverage_box birthday_cake
blueberries bread broccoli bubble_tea burrito butter candy canned_food carrot cheese_wedge cherries chestnut
chocolate_bar cocktail_glass coconut cooked_rice cookie cooking croissant cucumber cup_with_straw cupcake
curry_rice custard cut_of_meat dango doughnut dumpling ear_of_corn egg eggplant falafel fish_cake_with_swirl
flatbread fondue fortune_cookie french_fries fried_shrimp garlic ginger_root glass_of_milk grapes green_apple
green_salad hamburger honey_pot hot_beverage hot_dog hot_pepper ice_cream jar kiwi_fruit leafy_green lemon lime
lollipop mango mate meat_on_bone melon moon_cake oden olive onion pancakes pea_pod peach peanuts pear pie
pickle pineapple pizza popcorn pot_of_food potato poultry_leg pretzel red_apple rice_ball rice_cracker
roasted_sweet_potato root_vegetable sake salt sandwich shallow_pan_of_food shaved_ice shortcake soft_ice_cream
spaghetti steaming_bowl strawberry stuffed_flatbread sushi taco takeout_box tamale tangerine
teacup_without_handle teapot tomato tropical_drink tumbler_glass waffle watermelon wine_glass clinking_glasses
clinking_beer_mugs bottle_with_popping_cork baby_bottle pot_of_food
"""
_PLANTS = """
Christmas_tree blossom bouquet brown_mushroom cactus cherry_blossom coral deciduous_tree evergreen_tree
fallen_leaf four_leaf_clover herb hibiscus hyacinth leaf_fluttering_in_wind leafless_tree lotus maple_leaf
mushroom palm_tree pine_decoration potted_plant rose rosette seedling shamrock sheaf_of_rice sunflower
tanabata_tree tulip white_flower wilted_flower wood
"""
_VEHICLES = """
aerial_tramway airplane airplane_arrival airplane_departure ambulance articulated_lorry auto_rickshaw
automobile bicycle bullet_train bus canoe delivery_truck ferry fire_engine flying_saucer helicopter
high-speed_train kick_scooter light_rail locomotive manual_wheelchair metro minibus monorail motor_boat
motor_scooter motorcycle motorized_wheelchair mountain_cableway mountain_railway oncoming_automobile
oncoming_bus oncoming_police_car oncoming_taxi passenger_ship pickup_truck police_car racing_car railway_car
rocket roller_skate sailboat satellite ship skateboard sled small_airplane speedboat sport_utility_vehicle
station suspension_railway taxi tractor train tram tram_car trolleybus parachute
"""
_BUILDINGS = """
Japanese_castle Japanese_post_office Tokyo_tower bank castle church circus_tent cityscape cityscape_at_dusk
classical_building convenience_store department_store derelict_house factory hindu_temple hospital hotel house
house_with_garden houses hut kaaba lighthouse love_hotel mosque office_building post_office school
shinto_shrine stadium synagogue tent building_construction bridge_at_night fountain Statue_of_Liberty wedding
sunset bus_stop desert_island national_park
"""
_CLOTHES = """
backpack ballet_shoes billed_cap bikini briefs clutch_bag coat crown dress flat_shoe glasses gloves goggles
graduation_cap handbag high-heeled_shoe hiking_boot ice_skate jeans kimono lab_coat man’s_shoe
martial_arts_uniform military_helmet necktie one-piece_swimsuit purse rescue_worker’s_helmet ring
running_shirt running_shoe safety_vest sari scarf shorts socks sunglasses t-shirt thong_sandal top_hat
woman’s_boot woman’s_clothes woman’s_hat woman’s_sandal briefcase diving_mask lipstick ribbon
"""
_HANDS = """
OK_hand backhand_index_pointing_down backhand_index_pointing_left backhand_index_pointing_right
backhand_index_pointing_up call_me_hand clapping_hands crossed_fingers flexed_biceps folded_hands
hand_with_fingers_splayed hand_with_index_finger_and_thumb_crossed handshake heart_hands
index_pointing_at_the_viewer index_pointing_up left-facing_fist leftwards_hand leftwards_pushing_hand
love-you_gesture middle_finger oncoming_fist open_hands palm_down_hand palm_up_hand palms_up_together
pinched_fingers pinching_hand raised_back_of_hand raised_fist raised_hand raising_hands right-facing_fist
rightwards_hand rightwards_pushing_hand sign_of_the_horns thumbs_down thumbs_up victory_hand vulcan_salute
waving_hand writing_hand foot leg ear nail_polish
"""

KIND_OF_NAME: dict[str, str] = {
    name: kind
    for kind, names in (
        ("animal", _ANIMALS),
        ("food", _FOODS),
        ("plant", _PLANTS),
        ("vehicle", _VEHICLES),
        ("building", _BUILDINGS),
        ("garment", _CLOTHES),
        ("hand", _HANDS),
    )
    for name in names.split()
}
"""Unicode name of a drawing -> its kind; faces are found by the last word of the name instead."""

FACE = "face"
KINDS: tuple[str, ...] = ("animal", "building", "face", "food", "garment", "hand", "plant", "vehicle")


def kind_of(name: str) -> str | None:
    """The kind of the drawing with this Unicode name, or None when the demo does not ask about it."""
    kind = KIND_OF_NAME.get(name)
    if kind is None and name.endswith("_face"):
        return FACE
    return kind
