"""Make the model do what people prefer."""
