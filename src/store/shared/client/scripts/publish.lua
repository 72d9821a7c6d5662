-- KEYS: 4 lease, 5 lock. ARGV: 3 owner, 4 fence, 5 refused when the login began,
-- 6 single active token, 7 upstream, 8 life in ms, 9 sealed.
local lease, lock = KEYS[4], KEYS[5]
if redis.call('GET', lock) ~= ARGV[3] or number(lease, 'fence') ~= tonumber(ARGV[4]) then
  return {'lost'}
end
if number(lease, 'refused') > tonumber(ARGV[5]) and ARGV[6] ~= '1' then
  redis.call('DEL', lock)
  return {'superseded'}
end
local generation = number(lease, 'g') + 1
change('k', 'lease', 'u', ARGV[7])
redis.call('HSET', lease, 'g', whole(generation), 'ends', whole(now + ARGV[8]), 'sealed', ARGV[9])
redis.call('DEL', lock)
return {'ok', generation}
