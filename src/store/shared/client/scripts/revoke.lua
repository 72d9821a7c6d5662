-- KEYS: 4 token. ARGV: 3 digest. The mark that stays prevents a gateway that missed this
-- from restoring the token.
local value = redis.call('GET', KEYS[4])
if not value or value == 'x' then return {'none'} end
local seq = change('k', 'del', 'd', ARGV[3])
local was = uncount(KEYS[4], value)
redis.call('SET', KEYS[4], 'x', 'KEEPTTL')
return {'ok', seq, was and 1 or 0}
