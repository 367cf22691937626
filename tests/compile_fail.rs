//! What safe calls must not allow does not compile: `compile_fail` has programs, and what the
//! compiler says of each. After another compiler, or other lines of the library, `TRYBUILD=overwrite`
//! writes that anew; the errors must stay the same.

#[test]
fn unsound_programs_do_not_compile() {
    trybuild::TestCases::new().compile_fail("../tests/compile_fail/*.rs");
}
