"""What is made of a score model beside samples."""
