"""One experiment a file, by name: `jaxvit train --config=digits:cct`. In a checkout they lie in configs/."""
